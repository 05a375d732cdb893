"""The C++ plugins called as TensorRT would, with tensors in host memory and the kernels compiled for it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from q2export.contracts import opspec
from tests.plugins.host_plugins import PLUGIN_SOURCES, compile_plugins
from tests.plugins.kernels import Kernels
from tests.plugins.test_csrc_kernels import experts, frequencies, ragged_batch

TYPES = {  # nvinfer1::DataType
    **{torch.float32: 0, torch.float16: 1, torch.int32: 3, torch.int64: 8, torch.bfloat16: 7},
}
INT32_FIELD, FLOAT32_FIELD, INT64_FIELD = 5, 1, 10  # nvinfer1::PluginFieldType


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Fields(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("count", c_int32), ("fields", ctypes.POINTER(Field)))


class DriverTensor(ctypes.Structure):
    _fields_ = (("type", c_int32), ("rank", c_int32), ("dims", c_int64 * 4), ("data", c_void_p))


class Driver:
    """``plugin_driver.cpp``."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.driver_run.restype = c_char_p
        self.library.driver_log.restype = c_char_p

    def fields(self, values: Sequence[tuple[str, int, int | float]]) -> tuple[Fields, object]:
        """The collection, and what has to live as long."""
        kinds = {INT32_FIELD: c_int32, INT64_FIELD: c_int64, FLOAT32_FIELD: ctypes.c_float}
        data = [kinds[kind](value) for _, kind, value in values]
        rows = [
            Field(name.encode(), ctypes.cast(byref(value), c_void_p), kind, 1)
            for (name, kind, _), value in zip(values, data, strict=True)
        ]
        array = (Field * len(rows))(*rows)
        return Fields(len(rows), array), (data, array)

    def run(
        self,
        op: str,
        values: Sequence[tuple[str, int, int | float]],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> str:
        """The step that failed, or "", and what was logged."""
        collection, _keep = self.fields(values)
        tensors = [
            DriverTensor(TYPES[each.dtype], each.dim(), (c_int64 * 4)(*each.shape), each.data_ptr())
            for each in (*inputs, *outputs)
        ]
        array = (DriverTensor * len(tensors))(*tensors)
        failed = self.library.driver_run(op.encode(), byref(collection), array, len(inputs), len(outputs))
        return "" if failed is None else f"{failed.decode()}: {self.library.driver_log().decode()}"


@pytest.fixture(scope="module")
def driver(headers: Path, host_kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    output = tmp_path_factory.mktemp("driver") / "libdriver.so"
    sources = [*PLUGIN_SOURCES, Path(__file__).parent / "plugin_driver.cpp"]
    return Driver(compile_plugins(output, headers, host_kernels, sources, "-fvisibility=default"))


def fields_of(spec: opspec.OpSpec, values: Mapping[str, int | float]) -> list[tuple[str, int, int | float]]:
    kinds = {"int": INT32_FIELD, "float": FLOAT32_FIELD}
    return [(each.name, kinds[each.type], values[each.name]) for each in spec.attributes]


ATTENTION_VALUES = {
    "num_heads": 14,
    "num_kv_heads": 2,
    "scale": 0.125,
    "sliding_window": 4,
    "attention_factor": 1.07,
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding(driver: Driver, kernels: Kernels, dtype: torch.dtype) -> None:
    x, position_ids, inv_freq = (
        torch.randn(2, 3, 7, 64).to(dtype),
        torch.randint(0, 99, (2, 3)),
        frequencies(64),
    )
    y = torch.empty_like(x)
    fields = fields_of(opspec.ROTARY, {"attention_factor": 1.07})
    assert driver.run("Q2RotaryEmbedding", fields, [x, position_ids, inv_freq], [y]) == ""
    assert torch.equal(y, kernels.rotary_embedding(x, position_ids, inv_freq, 1.07))


@pytest.mark.parametrize("spec", [opspec.ATTENTION, opspec.ROTARY_ATTENTION], ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(driver: Driver, kernels: Kernels, spec: opspec.OpSpec, dtype: torch.dtype) -> None:
    tensors = ragged_batch(14, 2, 64, dtype)
    is_rotary = spec is opspec.ROTARY_ATTENTION
    rotation = (frequencies(64), 1.07) if is_rotary else None
    expected = kernels.attention(tensors, 4, rotation, scale=0.125)
    output, keys, values = torch.empty_like(tensors[0]), tensors[3].clone(), tensors[4].clone()
    inputs = [*tensors[:3], keys, values, *tensors[5:], *([frequencies(64)] if is_rotary else [])]
    assert driver.run(spec.name, fields_of(spec, ATTENTION_VALUES), inputs, [output, keys, values]) == ""
    for ours, theirs in zip((output, keys, values), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moe(driver: Driver, kernels: Kernels, dtype: torch.dtype) -> None:
    hidden, logits, weights = (
        torch.randn(5, 24).to(dtype),
        torch.randn(5, 7).to(dtype),
        experts(7, 24, 10, dtype),
    )
    output = torch.empty_like(hidden)
    fields = fields_of(opspec.MOE, {"num_experts": 7, "top_k": 3, "norm_topk_prob": 0})
    by_expert = [tensor for expert in zip(*weights, strict=True) for tensor in expert]
    assert driver.run("Q2MoE", fields, [hidden, logits, *by_expert], [output]) == ""
    assert torch.equal(output, kernels.moe(hidden, logits, weights, 3, False))


MOE_VALUES = {"num_experts": 4, "top_k": 2, "norm_topk_prob": 1}
PACKING = {"bits": 4, "block_size": 64}


def quantized_experts() -> list[Tensor]:
    """Hidden states, logits, words of codes and scales: hidden size 256, intermediate size 128."""
    tensors = [torch.randn(5, 256).half(), torch.randn(5, 4).half()]
    for rows, columns in ((256, 256), (256, 128)):
        codes = torch.randint(256, (4, rows, columns // 2), dtype=torch.uint8)
        tensors += [codes.view(torch.int32), (torch.randn(4, rows, columns // 64) / columns).half()]
    return tensors


def test_quantized_moe(driver: Driver, kernels: Kernels) -> None:
    hidden, logits, *packed = quantized_experts()
    output = torch.full_like(hidden, math.nan)
    fields = fields_of(opspec.QUANTIZED_MOE, {**MOE_VALUES, **PACKING})
    assert driver.run("Q2QuantizedMoE", fields, [hidden, logits, *packed], [output]) == ""
    as_bytes = [each.view(torch.uint8) if each.dtype == torch.int32 else each for each in packed]
    assert torch.equal(output, kernels.quantized_moe(hidden, logits, as_bytes, 2, True, 4, 64))


@pytest.mark.parametrize(
    ("index", "tensor", "message"),
    [
        (2, torch.zeros(4, 256, 31).int(), "hidden_size by the words of gate_up is 248, expected 256"),
        (2, torch.zeros(4, 254, 32).int(), "dimension 2*I of input gate_up_scale is 256, expected 254"),
        (3, torch.zeros(4, 256, 3).half(), "hidden_size by gate_up_scale is 192, expected 256"),
        (3, torch.zeros(4, 256, 4), "input gate_up_scale has data type 0, expected float16"),
        (4, torch.zeros(4, 256, 64).half(), "input down has data type 1, expected int32"),
        (5, torch.zeros(4, 256, 1).half(), "intermediate_size by down_scale is 64, expected 128"),
    ],
)
def test_quantized_experts_that_disagree_are_refused(
    driver: Driver, index: int, tensor: Tensor, message: str
) -> None:
    tensors = quantized_experts()
    tensors[index] = tensor
    fields = fields_of(opspec.QUANTIZED_MOE, {**MOE_VALUES, **PACKING})
    failed = driver.run("Q2QuantizedMoE", fields, tensors, [torch.empty_like(tensors[0])])
    assert "node node_7 (Q2QuantizedMoE)" in failed and message in failed


def test_a_packing_that_there_is_not_is_refused(driver: Driver) -> None:
    fields = fields_of(opspec.QUANTIZED_MOE, {**MOE_VALUES, "bits": 3, "block_size": 64})
    assert "quantized_moe: bits is 3, expected 4 or 8" in driver.run("Q2QuantizedMoE", fields, [], [])


@pytest.mark.parametrize("spec", opspec.ALL, ids=lambda spec: spec.name)
def test_aliases(driver: Driver, spec: opspec.OpSpec) -> None:
    values = {**ATTENTION_VALUES, **MOE_VALUES, **PACKING}
    collection, _keep = driver.fields(fields_of(spec, values))
    aliases = dict(spec.aliases)
    for index, output in enumerate(spec.output_names()):
        found = driver.library.driver_aliased_input(spec.name.encode(), byref(collection), index)
        assert found == (spec.input_names().index(aliases[output]) if output in aliases else -1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([("top_k", INT32_FIELD, 2)], "attribute num_experts is missing"),
        ([("topk", INT32_FIELD, 2)], "attribute topk is unknown to Q2MoE"),
        ([("top_k", INT32_FIELD, 2), ("top_k", INT32_FIELD, 2)], "attribute top_k is given twice"),
        ([("top_k", FLOAT32_FIELD, 2.0)], "attribute top_k is no integer"),
        ([("top_k", INT64_FIELD, 2**32 + 2)], "attribute top_k is 4294967298, which has more than 32 bits"),
    ],
)
def test_attributes_are_refused(
    driver: Driver, values: list[tuple[str, int, int | float]], message: str
) -> None:
    failed = driver.run("Q2MoE", values, [], [])
    assert failed.startswith("createPlugin: q2export: Q2MoE: node node_7: ") and message in failed


@pytest.mark.parametrize(
    ("changed", "value", "message"),
    [
        ("num_heads", 13, "num_heads is 13, expected a multiple of 2"),
        ("num_heads", 12, "dimension Hq, attribute num_heads, is 14, expected 12"),
        ("scale", math.inf, "attribute scale is inf, expected a finite value"),
        ("sliding_window", -1, "sliding_window is -1, expected 0 .. 2147483647"),
    ],
)
def test_values_are_refused(driver: Driver, changed: str, value: float, message: str) -> None:
    tensors = ragged_batch(14, 2, 64, torch.float32)
    fields = fields_of(opspec.ATTENTION, {**ATTENTION_VALUES, changed: value})
    outputs = [torch.empty_like(tensors[index]) for index in (0, 3, 4)]
    failed = driver.run("Q2GroupQueryAttention", fields, tensors, outputs)
    assert "node_7" in failed and message in failed


@pytest.mark.parametrize(
    ("index", "tensor", "message"),
    [
        (
            1,
            torch.zeros(4, 5, 2, 64).half(),
            "input key has data type 1, expected float16",
        ),
        (5, torch.zeros(4), "input past_lengths has data type 0, expected int64"),
        (2, torch.zeros(4, 5, 128), "input value has 3 dimensions, expected [B, S, Hkv, D]"),
        (6, torch.zeros(3).long(), "dimension B of input query_lengths is 3, expected 4"),
    ],
)
def test_tensors_are_refused(driver: Driver, index: int, tensor: Tensor, message: str) -> None:
    tensors = ragged_batch(14, 2, 64, torch.float32)
    outputs = [torch.empty_like(tensors[index]) for index in (0, 3, 4)]
    tensors[index] = tensor
    failed = driver.run(
        "Q2GroupQueryAttention", fields_of(opspec.ATTENTION, ATTENTION_VALUES), tensors, outputs
    )
    assert "node node_7 (Q2GroupQueryAttention)" in failed and message in failed


def test_a_wrong_number_of_experts_is_refused(driver: Driver) -> None:
    hidden, logits, weights = torch.randn(5, 24), torch.randn(5, 7), experts(7, 24, 10, torch.float32)
    fields = fields_of(opspec.MOE, {"num_experts": 6, "top_k": 3, "norm_topk_prob": 0})
    by_expert = [tensor for expert in zip(*weights, strict=True) for tensor in expert]
    failed = driver.run("Q2MoE", fields, [hidden, logits, *by_expert], [torch.empty_like(hidden)])
    assert "23 inputs and 1 outputs, expected 20 and 1" in failed
