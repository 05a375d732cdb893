"""What initializers of quantized graphs are made of: views of bytes, signed codes, unpadded zero points."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load, save_file

from q2export.contracts.quantization import Quantization, Scheme
from q2export.errors import ExportError
from q2export.exporter.checkpoint.folder import SINGLE_FILE, open_checkpoint
from q2export.exporter.checkpoint.pack import pack
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.safetensors_header import QUANTIZED_DTYPES
from q2export.exporter.passes.gather_codes import GatherCodes
from q2export.exporter.weights.bind import BindingPlan, plan_binding
from q2export.exporter.weights.convert import write_converted
from q2export.exporter.weights.stack import META_KEY, Form, Stack
from tests.exporter.quantization.models import dequantize, read_tensors
from tests.helpers.onnx_graphs import fill, parse, run
from tests.helpers.quantized import write_packed

RNG = np.random.default_rng(5)
CODES = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
MORE = RNG.integers(0, 256, (3, 6), dtype=np.uint8)
POINTS = RNG.integers(0, 256, (5, 2), dtype=np.uint8)


def plan_of(
    folder: Path, dtype: ir.DataType, shape: list[int], tensors: tuple[str, ...], form: Form
) -> BindingPlan:
    save_file({"a": CODES, "b": MORE, "z": POINTS}, folder / SINGLE_FILE)
    value = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.meta[META_KEY] = Stack(tensors, form)
    graph = ir.Graph((), (), nodes=(), opset_imports={"": 23}, name="g", initializers=[value])
    checkpoint = open_checkpoint(folder, QUANTIZED_DTYPES)
    return plan_binding(ir.Model(graph, ir_version=11), checkpoint, tensors)


def converted(plan: BindingPlan) -> bytes:
    sink = io.BytesIO()
    write_converted(plan, sink, scan=True)
    data: bytes = load(sink.getvalue())["x"].tobytes()
    return data


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (ir.DataType.UINT8, [7, 6]),
        (ir.DataType.UINT4, [7, 12]),
        (ir.DataType.UINT8, [7, 2, 3]),
    ],
)
def test_tensors_in_a_row_are_seen_as_one(tmp_path: Path, dtype: ir.DataType, shape: list[int]) -> None:
    (binding,) = plan_of(tmp_path, dtype, shape, ("a", "b"), Form.BYTES).in_place
    assert (binding.nbytes, binding.source.name) == (42, "a")


def test_tensors_that_are_apart_are_written_anew(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ir.DataType.UINT8, [7, 6], ("b", "a"), Form.BYTES)
    assert plan.in_place == () and converted(plan) == MORE.tobytes() + CODES.tobytes()


@pytest.mark.parametrize(("dtype", "bits", "columns"), [(ir.DataType.INT4, 4, 12), (ir.DataType.INT8, 8, 6)])
def test_signed_codes_are_the_codes_less_the_middle(
    tmp_path: Path, dtype: ir.DataType, bits: int, columns: int
) -> None:
    plan = plan_of(tmp_path, dtype, [4, columns], ("a",), Form.SIGNED_CODES)
    found = np.frombuffer(converted(plan), np.uint8).reshape(4, 6)
    for byte, signed in zip(CODES.ravel(), found.ravel(), strict=True):
        for shift in range(0, 8, bits):
            code, value = (int(one) >> shift & (1 << bits) - 1 for one in (byte, signed))
            value -= (1 << bits) if value >= 1 << (bits - 1) else 0
            assert value == code - (1 << (bits - 1))


def test_rows_of_an_odd_number_of_nibbles_lose_their_padding(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ir.DataType.UINT4, [5, 3], ("z",), Form.UNPADDED_NIBBLES)
    rows = np.stack([POINTS[:, 0] & 15, POINTS[:, 0] >> 4, POINTS[:, 1] & 15], axis=1)
    assert converted(plan) == pack(rows.reshape(-1), 4).tobytes()


def test_a_view_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"initializer 'x' .* has no tensor to read"):
        plan_of(tmp_path, ir.DataType.UINT8, [7, 7], ("a", "b"), Form.BYTES)


@pytest.mark.parametrize("symmetric", [True, False])
def test_values_of_parameters_are_those_the_format_says(tmp_path: Path, symmetric: bool) -> None:
    source = write_packed(tmp_path, "moe", Quantization(weights="int4", symmetric=symmetric))
    values, tensors = (
        ParameterValues(source.checkpoint, source.packed),
        read_tensors(source.folder / SINGLE_FILE),
    )
    for name, weight in source.packed.items():
        expected = dequantize(tensors, weight)
        assert values.shape(name) == expected.shape
        np.testing.assert_array_equal(values.read(name), expected)
        np.testing.assert_array_equal(values.rows(name, 3, 5), expected[3:8])


GATHER = """agraph (int64[B, S] ids, float[V, C] table) => (float[B, S, C] rows)
{ [embed] rows = Gather (table, ids) }"""


@pytest.mark.parametrize("bits", [4, 8])
def test_gathered_codes_of_every_value(bits: int) -> None:
    """Every byte in every place of a word, words that are negative as int32 among them."""
    rows, columns = 256, 32 if bits == 8 else 64
    packed = np.arange(256, dtype=np.uint8)[:, None] + 37 * np.arange(32, dtype=np.uint8)[None]
    weight = PackedWeight("table", (rows, columns), Scheme(bits, 32, symmetric=True))
    scales = np.linspace(0.5, 2, weight.rows * weight.blocks, dtype=np.float16).reshape(weight.scale_shape)
    text = GATHER.replace("V, C", f"{rows}, {columns}").replace("S, C", f"S, {columns}")
    model = parse(text)
    model.graph.initializers.add(model.graph.inputs.pop(1))
    assert GatherCodes({"table": weight})(model).matched == 1
    del model.graph.initializers["table"]
    filled = fill(model, {"table/words": packed.view("<i4"), "table/scale": scales})
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, columns)
    ids = np.array([[0, 255, 17], [130, 8, 8]])
    centred = codes.astype(np.float32) - (1 << (bits - 1))
    expected = centred.reshape(rows, -1, 32) * scales[..., None]
    found = run(filled, {"ids": ids})["rows"]
    np.testing.assert_array_equal(found, expected.reshape(rows, columns)[ids])
