"""The ops over packed weights: their function bodies, in ONNX Runtime and onnx.reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from q2export.contracts import opspec
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops import quantized
from q2export.exporter.graph.ops.functions import IR_VERSION, ONNX_OPSET, function_for
from q2export.exporter.graph.ops.moe import moe

Array = npt.NDArray[np.generic]
SCHEMES = [Scheme(4, 32, True), Scheme(4, 64, False), Scheme(8, 32, False), Scheme(8, 128, True)]
BY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
ROUNDS = pytest.mark.parametrize("int8_activations", [0, 1])


def packed(rng: np.random.Generator, scheme: Scheme, *shape: int) -> tuple[Array, Array, Array | None]:
    """Codes, scales and zero points of weights of this shape."""
    *rows, columns = shape
    blocks = columns // scheme.block_size
    codes = rng.integers(0, 256, (*rows, columns * scheme.bits // 8), np.uint8)
    points = rng.integers(0, 256, (*rows, -(-blocks * scheme.bits // 8)), np.uint8)
    scale = rng.normal(0, 0.5 / scheme.levels, (*rows, blocks)).astype(np.float16)
    return codes, scale, None if scheme.symmetric else points


def check(
    spec: opspec.OpSpec,
    scheme: Scheme,
    feed: Mapping[str, Array | None],
    attributes: Mapping[str, int],
    expected: torch.Tensor,
) -> None:
    """Run one node by its function body, in both."""
    helper = onnx.helper
    given = {name: array for name, array in feed.items() if array is not None}
    names = [name if name in given else "" for name in spec.input_names()]
    node = helper.make_node(spec.name, names, ["output"], domain=opspec.DOMAIN, **attributes)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, types[name], [None] * given[name].ndim) for name in given],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [None, None])],
    )
    specs = dict.fromkeys((opspec.QUANTIZED_LINEAR, spec))  # the body of the mixture calls the other
    versions = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(opspec.DOMAIN, 1)]
    functions = [function_for(one, scheme=scheme) for one in specs]
    model = helper.make_model(graph, functions=functions, opset_imports=versions, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bound = 1e-5 * np.abs(expected.numpy()).max(initial=1)
    for found in (session.run(None, given)[0], ReferenceEvaluator(model).run(None, given)[0]):
        assert found.shape == expected.shape
        assert np.abs(found - expected.numpy()).max(initial=0) <= bound


def tensors(feed: Mapping[str, Array | None]) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(array) for array in feed.values()]


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("bias", [True, False])
@ROUNDS
@BY_SCHEME
def test_quantized_linear(scheme: Scheme, int8_activations: int, bias: bool, tokens: int) -> None:
    rng = np.random.default_rng(1)
    weight, scale, points = packed(rng, scheme, 10, 384)
    feed = {
        "input": rng.standard_normal((tokens, 384), np.float32),
        "weight": weight,
        "weight_scale": scale,
        "weight_zero_point": points,
        "bias": rng.standard_normal(10, np.float32) if bias else None,
    }
    if tokens:
        feed["input"][0, :128] = 0  # a block without a scale
    attributes = {
        "bits": scheme.bits,
        "block_size": scheme.block_size,
        "int8_activations": int8_activations,
    }
    expected = quantized.quantized_linear(*tensors(feed), *attributes.values())
    matrix = quantized.dequantize(*tensors(feed)[1:4], scheme.bits, scheme.block_size)
    exact = torch.nn.functional.linear(*tensors(feed)[:1], matrix, tensors(feed)[4])
    if tokens:
        assert (0 < (expected - exact).abs().max() < 0.1) == bool(int8_activations)
    check(opspec.QUANTIZED_LINEAR, scheme, feed, attributes, expected)


@pytest.mark.parametrize("norm_topk_prob", [0, 1])
@ROUNDS
@BY_SCHEME
def test_quantized_moe(scheme: Scheme, int8_activations: int, norm_topk_prob: int) -> None:
    """Seven tokens and six experts, of which one gets none."""
    rng = np.random.default_rng(2)
    first, second = packed(rng, scheme, 6, 256, 128), packed(rng, scheme, 6, 128, 128)
    logits = rng.standard_normal((7, 6), np.float32)
    logits[:, 3] = -10
    feed = {
        "hidden": rng.standard_normal((7, 128), np.float32),
        "router_logits": logits,
        "gate_up": first[0],
        "gate_up_scale": first[1],
        "down": second[0],
        "down_scale": second[1],
        "gate_up_zero_point": first[2],
        "down_zero_point": second[2],
    }
    attributes = {
        "num_experts": 6,
        "top_k": 2,
        "norm_topk_prob": norm_topk_prob,
        "bits": scheme.bits,
        "block_size": scheme.block_size,
        "int8_activations": int8_activations,
    }
    expected = quantized.quantized_moe(*tensors(feed), *attributes.values())
    if not int8_activations:
        size = scheme.bits, scheme.block_size
        matrices = [quantized.dequantize(*map(torch_of, each), *size) for each in (first, second)]
        gate, up = matrices[0][:, 0::2], matrices[0][:, 1::2]
        lists = [list(each) for each in (gate, up, matrices[1])]
        plain = moe(*tensors(feed)[:2], *lists, 6, 2, norm_topk_prob)
        assert (plain - expected).abs().max() <= 1e-5 * float(expected.abs().max())
    check(opspec.QUANTIZED_MOE, scheme, feed, attributes, expected)


def torch_of(array: Array | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


@pytest.mark.parametrize("spec", [opspec.QUANTIZED_LINEAR, opspec.QUANTIZED_MOE], ids=lambda spec: spec.name)
def test_the_signature_of_the_body_is_that_of_the_specification(spec: opspec.OpSpec) -> None:
    function = function_for(spec, scheme=SCHEMES[1])
    assert tuple(function.input) == spec.input_names()
    assert tuple(function.output) == spec.output_names()
    of_cpu = tuple(attribute.name for attribute in spec.cpu_attributes)
    assert tuple(function.attribute) == (*spec.attribute_names(), *of_cpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_body_over_words_is_the_op(bits: int, dtype: torch.dtype) -> None:
    """As TensorRT has it: int32 words, negative ones among them, and activations of 16 bits."""
    rng, scheme, names = (
        np.random.default_rng(4),
        Scheme(bits, 64, True),
        opspec.QUANTIZED_MOE.input_names()[:6],
    )
    matrices = [*packed(rng, scheme, 5, 256, 128)[:2], *packed(rng, scheme, 5, 128, 128)[:2]]
    inputs = [torch.from_numpy(rng.standard_normal((6, size), np.float32)).to(dtype) for size in (128, 5)]
    attributes = {"num_experts": 5, "top_k": 2, "norm_topk_prob": 0, "bits": bits, "block_size": 64}
    expected = quantized.quantized_moe(
        *inputs, *map(torch_of, matrices), None, None, *attributes.values()
    ).to(torch.float32)
    function = function_for(opspec.QUANTIZED_MOE, scheme=scheme, words=True)
    plugin = {"plugin_version": opspec.PLUGIN_VERSION, "plugin_namespace": opspec.PLUGIN_NAMESPACE}
    assert tuple(function.input) == names
    assert list(function.attribute) == [*attributes, *plugin]
    element = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[dtype]
    nodes = [  # NumPy has no bfloat16
        *(onnx.helper.make_node("Cast", [f"{name}_wide"], [name], to=element) for name in names[:2]),
        onnx.helper.make_node(function.name, names, ["y"], domain=function.domain, **attributes, **plugin),
        onnx.helper.make_node("Cast", ["y"], ["output"], to=1),
    ]
    arrays = [each.to(torch.float32).numpy() for each in inputs]
    arrays += [
        each.view(np.int32) if each.dtype == np.uint8 else each for each in matrices if each is not None
    ]
    feed = dict(zip([f"{name}_wide" for name in names[:2]] + list(names[2:]), arrays, strict=True))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "one",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(each.dtype), each.shape
                )
                for name, each in feed.items()
            ],
            [onnx.helper.make_tensor_value_info("output", 1, None)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", ONNX_OPSET), onnx.helper.make_opsetid(opspec.DOMAIN, 1)],
        ir_version=IR_VERSION,
        functions=[function],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    bound = float(torch.finfo(dtype).eps) * float(expected.abs().max()) + 1e-5
    assert np.abs(found - expected.numpy()).max() <= bound
