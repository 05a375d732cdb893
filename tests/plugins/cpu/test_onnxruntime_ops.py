"""The custom ops in sessions of ONNX Runtime."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from q2export.contracts import opspec
from tests.plugins.cpu.kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CpuKernels,
    Packed,
    PackedExperts,
    Step,
    stored,
    widened,
)
from tests.plugins.cpu.sessions import ELEMENT_TYPES, Node, initializer
from tests.plugins.cpu.test_attention import step_of
from tests.plugins.cpu.test_moe import experts_of

F, F16, U8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8
BF16 = onnx.TensorProto.BFLOAT16
RNG = np.random.default_rng(11)


def linear_node(
    dtype: int, outputs: int = 70, inputs: int = 33, with_bias: bool = True, rounded: int = 0
) -> Node:
    weight = stored(RNG.standard_normal((outputs, inputs), np.float32), dtype)
    tensors = [initializer("weight", weight, ELEMENT_TYPES[dtype])]
    if with_bias:
        bias = stored(RNG.standard_normal(outputs, np.float32), dtype)
        tensors.append(initializer("bias", bias, ELEMENT_TYPES[dtype]))
    names = ["x", *(each.name for each in tensors)]
    return Node("Q2Linear", names, tensors, {"x": F}, {"y": F}, {"bfloat16_activations": rounded})


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_the_kernel(onnxruntime_library: Path, dtype: int, with_bias: bool) -> None:
    """Any leading dimensions, on one thread and on three: the kernel's own bits."""
    node = linear_node(dtype, 700, 33, with_bias)
    kernels = CpuKernels(onnxruntime_library)
    raw = [np.frombuffer(each.raw_data, np.uint8) for each in node.initializers]
    x = RNG.standard_normal((2, 150, 33), np.float32)
    expected = kernels.linear(x.reshape(-1, 33), raw[0], 700, dtype, raw[1] if with_bias else None, dtype)
    for threads in (1, 3):
        session = node.session(onnxruntime_library, threads)
        (found,) = session.run(None, {"x": x})
        np.testing.assert_array_equal(found, expected.reshape(2, 150, 700))
        (vector,) = session.run(None, {"x": x[0, 0]})
        np.testing.assert_array_equal(vector, expected[0])


def test_linear_rounds_its_input(onnxruntime_library: Path) -> None:
    node = linear_node(BFLOAT16, with_bias=False, rounded=1)
    raw = np.frombuffer(node.initializers[0].raw_data, np.uint8)
    x = RNG.standard_normal((9, 33), np.float32)
    (found,) = node.session(onnxruntime_library).run(None, {"x": x})
    expected = CpuKernels(onnxruntime_library).linear(x, raw, 70, BFLOAT16, activations=2)
    np.testing.assert_array_equal(found, expected)


BODY = """
<opset_import: ["" : 21, "q2export" : 1], domain: "q2export">
Q2Linear <bfloat16_activations> (input, weight, bias) => (output) {
    wide = Cast <to = 1> (weight)
    transposed = Transpose <perm = [1, 0]> (wide)
    product = MatMul (input, transposed)
    wide_bias = Cast <to = 1> (bias)
    output = Add (product, wide_bias)
}
"""


def test_the_kernel_goes_before_the_function_body(onnxruntime_library: Path) -> None:
    """The same file with and without the library: alike, but for the order of the sums."""
    plain = linear_node(FLOAT16, 70, 2000)
    body = onnx.parser.parse_function(BODY)
    node = replace(plain, functions=[body])
    x = RNG.standard_normal((5, 2000), np.float32)
    (by_body,) = node.session(None).run(None, {"x": x})
    (by_kernel,) = node.session(onnxruntime_library).run(None, {"x": x})
    (kernel,) = plain.session(onnxruntime_library).run(None, {"x": x})
    np.testing.assert_allclose(by_kernel, by_body, atol=1e-3)
    np.testing.assert_array_equal(by_kernel, kernel)
    assert (by_kernel != by_body).any()


def test_linear_refuses(onnxruntime_library: Path) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    session = linear_node(BFLOAT16).session(onnxruntime_library)
    message = r"q2export: Q2Linear node: weight has shape \[70, 33\], expected \[any, 32\]"
    with pytest.raises(InvalidArgument, match=message):
        session.run(None, {"x": np.ones((2, 32), np.float32)})
    codes = initializer("weight", np.ones((4, 3), np.uint8), onnx.TensorProto.UINT8)
    node = replace(linear_node(BFLOAT16, with_bias=False), initializers=[codes])
    with pytest.raises(InvalidArgument, match="weight has element type 2, expected float32, float16"):
        node.session(onnxruntime_library).run(None, {"x": np.ones((1, 3), np.float32)})
    session = linear_node(FLOAT16, rounded=1).session(onnxruntime_library)
    with pytest.raises(InvalidArgument, match="activations of bfloat16 need weights of bfloat16"):
        session.run(None, {"x": np.ones((2, 33), np.float32)})
    with pytest.raises(Exception, match="bfloat16_activations is 2, expected 0 or 1"):
        linear_node(BFLOAT16, rounded=2).session(onnxruntime_library)
    with pytest.raises(Exception, match="bfloat16_activations"):
        replace(linear_node(BFLOAT16), attributes={}).session(onnxruntime_library)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_quantized_linear_is_the_kernel(onnxruntime_library: Path, symmetric: bool, with_bias: bool) -> None:
    weight = Packed.random((300, 96), 4, 32, symmetric)
    bias = RNG.standard_normal(300, np.float32) if with_bias else None
    arrays = {"weight": (weight.codes, U8), "weight_scale": (weight.scales, F16)}
    if weight.zero_points is not None:
        arrays["weight_zero_point"] = (weight.zero_points, U8)
    if bias is not None:
        arrays["bias"] = (bias, F)
    names = ["weight", "weight_scale", "weight_zero_point", "bias"]
    tensors = [initializer(name, *arrays[name]) for name in names if name in arrays]
    x = RNG.standard_normal((3, 40, 96), np.float32)
    for int8 in (0, 1):
        attributes = {"bits": 4, "block_size": 32, "int8_activations": int8}
        inputs = ["x", *(name if name in arrays else "" for name in names)]
        node = Node("Q2QuantizedLinear", inputs, tensors, {"x": F}, {"y": F}, attributes)
        (found,) = node.session(onnxruntime_library).run(None, {"x": x})
        expected = CpuKernels(onnxruntime_library).quantized_linear(
            x.reshape(-1, 96), weight, bool(int8), bias
        )
        np.testing.assert_array_equal(found, expected.reshape(3, 40, 300))


def test_quantized_linear_refuses(onnxruntime_library: Path) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    tensors = [
        initializer("weight", np.ones((4, 16), np.uint8), U8),
        initializer("weight_scale", np.ones((4, 2), np.float16), F16),
    ]

    def node(**attributes: int) -> Node:
        inputs = ["x", "weight", "weight_scale"]
        return Node("Q2QuantizedLinear", inputs, tensors, {"x": F}, {"y": F}, attributes)

    good = {"bits": 4, "block_size": 32, "int8_activations": 1}
    session = node(**good).session(onnxruntime_library)
    with pytest.raises(InvalidArgument, match=r"weight_scale has shape \[4, 2\], expected \[4, 1\]"):
        session.run(None, {"x": np.ones((1, 32), np.float32)})
    with pytest.raises(Exception, match="node: bits is 3, expected 4 or 8"):
        node(**{**good, "bits": 3}).session(onnxruntime_library)
    with pytest.raises(Exception, match="int8_activations"):
        node(bits=4, block_size=32).session(onnxruntime_library)


def attention_node(spec: opspec.OpSpec, dtype: int) -> Node:
    """A node of the specification, its cache of an element type."""
    kinds = {"T": F, "F": F, "KV": ELEMENT_TYPES[dtype], "L": onnx.TensorProto.INT64}
    inputs = {each.name: kinds[each.element_type] for each in spec.inputs}
    outputs = {each.name: kinds[each.element_type] for each in spec.outputs}
    values = {
        "num_heads": 4,
        "num_kv_heads": 2,
        "scale": 0.25,
        "sliding_window": 20,
        "attention_factor": 1.25,
    }
    attributes = {name: values[name] for name in spec.attribute_names()}
    return Node(spec.name, list(inputs), [], inputs, outputs, attributes)


@pytest.mark.parametrize("constant", [True, False])
def test_moe_is_the_kernel(onnxruntime_library: Path, constant: bool) -> None:
    """Weights that are initializers, and weights that are fed."""
    experts = experts_of(6, 20, 12, FLOAT16)
    matrices = [
        each for expert in zip(experts.gate, experts.up, experts.down, strict=True) for each in expert
    ]
    names = opspec.MOE.input_names(6)
    x, logits = (RNG.standard_normal(shape, np.float32) for shape in ((30, 20), (30, 6)))
    feeds: dict[str, Any] = {"hidden": x, "router_logits": logits}
    tensors = [initializer(name, each, F16) for name, each in zip(names[2:], matrices, strict=True)]
    fed = {"hidden": F, "router_logits": F}
    if not constant:
        feeds |= dict(zip(names[2:], matrices, strict=True))
        fed |= dict.fromkeys(names[2:], F16)
        tensors = []
    attributes = {"num_experts": 6, "top_k": 2, "norm_topk_prob": 1}
    session = Node("Q2MoE", names, tensors, fed, {"output": F}, attributes).session(onnxruntime_library)
    expected = CpuKernels(onnxruntime_library).moe(x, logits, experts, 2, True)
    np.testing.assert_array_equal(session.run(None, feeds)[0], expected)
    with pytest.raises(Exception, match=r"router_logits has shape \[30, 5\], expected \[30, 6\]"):
        session.run(None, {**feeds, "router_logits": logits[:, :5]})


def test_moe_of_bfloat16_activations(onnxruntime_library: Path) -> None:
    """Where the attribute is 1, and only there; not over other weights."""
    experts = experts_of(4, 20, 12, BFLOAT16)
    matrices = [
        each for expert in zip(experts.gate, experts.up, experts.down, strict=True) for each in expert
    ]
    names = opspec.MOE.input_names(4)
    x, logits = (RNG.standard_normal(shape, np.float32) for shape in ((30, 20), (30, 4)))
    tensors = [initializer(name, each, BF16) for name, each in zip(names[2:], matrices, strict=True)]
    attributes = {"num_experts": 4, "top_k": 2, "norm_topk_prob": 1}
    node = Node("Q2MoE", names, tensors, {"hidden": F, "router_logits": F}, {"output": F}, attributes)
    kernels, feeds = CpuKernels(onnxruntime_library), {"hidden": x, "router_logits": logits}
    found = []
    for changed, activations in (({}, 0), ({"bfloat16_activations": 0}, 0), ({"bfloat16_activations": 1}, 2)):
        session = replace(node, attributes=attributes | changed).session(onnxruntime_library)
        found.append(session.run(None, feeds)[0])
        np.testing.assert_array_equal(found[-1], kernels.moe(x, logits, experts, 2, True, activations))
    assert np.abs(found[2] - found[0]).max() > 1e-4
    with pytest.raises(Exception, match="bfloat16_activations is 2, expected 0 or 1"):
        replace(node, attributes=attributes | {"bfloat16_activations": 2}).session(onnxruntime_library)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("int8", [0, 1])
def test_quantized_moe_is_the_kernel(onnxruntime_library: Path, symmetric: bool, int8: int) -> None:
    """With and without zero points; and with what does not fit."""
    experts = PackedExperts.random((6, 64, 96), 4, 32, symmetric)
    tensors = []
    names = ["gate_up", "gate_up_scale", "down", "down_scale", "gate_up_zero_point", "down_zero_point"]
    gate_up, down = experts.gate_up, experts.down
    arrays = (gate_up.codes, gate_up.scales, down.codes, down.scales, gate_up.zero_points, down.zero_points)
    for name, array, kind in zip(names, arrays, (U8, F16, U8, F16, U8, U8), strict=True):
        if array is not None:
            tensors.append(initializer(name, array.reshape(6, -1, array.shape[1]), kind))
    attributes = {"num_experts": 6, "top_k": 2, "norm_topk_prob": 1}
    attributes |= {"bits": 4, "block_size": 32, "int8_activations": int8}
    inputs = ["hidden", "router_logits", *(each.name for each in tensors)]
    node = Node("Q2QuantizedMoE", inputs, tensors, dict.fromkeys(inputs[:2], F), {"output": F}, attributes)
    session = node.session(onnxruntime_library)
    x, logits = (RNG.standard_normal(shape, np.float32) for shape in ((30, 64), (30, 6)))
    expected = CpuKernels(onnxruntime_library).quantized_moe(x, logits, experts, 2, True, bool(int8))
    np.testing.assert_array_equal(session.run(None, {"hidden": x, "router_logits": logits})[0], expected)
    with pytest.raises(Exception, match=r"router_logits has shape \[30, 5\], expected \[30, 6\]"):
        session.run(None, {"hidden": x, "router_logits": logits[:, :5]})
    with pytest.raises(Exception, match=r"gate_up has shape \[6, 192, 32\], expected \[6, any, 48\]"):
        session.run(None, {"hidden": x.repeat(2, 1)[:, :96], "router_logits": logits})
    with pytest.raises(Exception, match=r"top_k is 7, expected 1 .. 6"):
        replace(node, attributes={**attributes, "top_k": 7}).session(onnxruntime_library)


def feeds_of(spec: opspec.OpSpec, step: Step) -> dict[str, Any]:
    """The inputs of a node by name."""
    lengths = [np.array(each, np.int64) for each in (step.past_lengths, step.query_lengths)]
    arrays = (step.query, step.key, step.value, step.key_cache, step.value_cache, *lengths, step.inv_freq)
    return dict(zip(spec.input_names(), arrays, strict=False))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
@pytest.mark.parametrize("spec", [opspec.ROTARY_ATTENTION, opspec.ATTENTION], ids=lambda spec: spec.name)
def test_attention_is_the_kernel(
    onnxruntime_library: Path, spec: opspec.OpSpec, dtype: int, in_place: bool
) -> None:
    """In place where one buffer is bound to past and present; else past stays as it is."""
    import onnxruntime

    step = step_of((4, 2, 16), 50, 5, [7, 40], [5, 2], 20, dtype)
    if spec is opspec.ATTENTION:
        step = replace(step, inv_freq=None)
    feeds, node = feeds_of(spec, step), attention_node(spec, dtype)
    session = node.session(onnxruntime_library)
    binding = session.io_binding()
    make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    held = {name: make(array.copy(), node.graph_inputs[name]) for name, array in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    aliases = dict(spec.aliases) if in_place else {}
    for name in spec.output_names():
        if name in aliases:
            binding.bind_ortvalue_output(name, held[aliases[name]])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    output, *presents = binding.get_outputs()
    expected = CpuKernels(onnxruntime_library).attention(step)
    np.testing.assert_array_equal(output.numpy(), expected[0])
    for present, past, wanted in zip(presents, ("past_key", "past_value"), expected[1:], strict=True):
        assert memory(present, wanted.nbytes) == wanted.tobytes()
        assert memory(held[past], wanted.nbytes) == (wanted if in_place else feeds[past]).tobytes()


def memory(value: Any, size: int) -> bytes:
    """The contents of an OrtValue, also of types that numpy does not have."""
    return ctypes.string_at(value.data_ptr(), size)


def test_several_sessions_share_the_ops(onnxruntime_library: Path) -> None:
    node = linear_node(FLOAT32)
    x = np.ones((1, 33), np.float32)
    first, second = (node.session(onnxruntime_library) for _ in range(2))
    (expected,) = first.run(None, {"x": x})
    del first
    np.testing.assert_array_equal(second.run(None, {"x": x})[0], expected)
    weight = np.frombuffer(node.initializers[0].raw_data, np.float32).reshape(70, 33)
    bias = np.frombuffer(node.initializers[1].raw_data, np.float32)
    np.testing.assert_allclose(expected[0], widened(weight, FLOAT32).sum(1) + bias, atol=1e-4)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_nothing_else_is_exported(onnxruntime_library: Path) -> None:
    command = ["nm", "--dynamic", "--defined-only", str(onnxruntime_library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in said.splitlines()}
    assert "RegisterCustomOps" in names
    assert {name for name in names if not name.startswith("q2export_cpu_")} == {"RegisterCustomOps"}
