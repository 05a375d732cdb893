"""The custom ops of the CUDA provider, over kernels compiled for the host, in sessions of ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from q2export.contracts import opspec
from q2export.exporter.graph.ops.functions import function_for
from tests.plugins.cpu.sessions import Node
from tests.plugins.cuda_ops import glue
from tests.plugins.kernels import Kernels

TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.uint8: onnx.TensorProto.UINT8,
}
ATTENTION = {"num_heads": 4, "num_kv_heads": 2, "scale": 0.25, "sliding_window": 0}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def library(host_kernels: Path) -> Path:
    """The ops on the CPU provider."""
    return glue(host_kernels, "nullptr")


def value_of(tensor: torch.Tensor) -> Any:
    import onnxruntime

    array = tensor.contiguous().view(torch.uint16).numpy() if tensor.element_size() == 2 else tensor.numpy()
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TYPES[tensor.dtype])


def tensor_of(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A copy, also of types that NumPy does not have."""
    assert list(value.shape()) == list(like.shape)
    memory = bytearray(ctypes.string_at(value.data_ptr(), like.numel() * like.element_size()))
    return torch.frombuffer(memory, dtype=like.dtype).reshape(like.shape)


def run(session: Any, feeds: dict[str, torch.Tensor], outputs: dict[str, str | None]) -> list[Any]:
    """Values of the outputs; each may be bound to the memory of an input."""
    binding = session.io_binding()
    held = {name: value_of(tensor) for name, tensor in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for name, past in outputs.items():
        if past is None:
            binding.bind_output(name)
        else:
            binding.bind_ortvalue_output(name, held[past])
    session.run_with_iobinding(binding)
    return list(binding.get_outputs())


def attention_feeds(dtype: torch.dtype, rotary: bool) -> dict[str, torch.Tensor]:
    shapes = ((2, 3, 4, 16), (2, 3, 2, 16), (2, 3, 2, 16), (2, 2, 9, 16), (2, 2, 9, 16))
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    tensors += [torch.tensor([5, 0]), torch.tensor([3, 2])]
    tensors += [10000.0 ** (-torch.arange(8) * 2 / 16)] if rotary else []
    spec = opspec.ROTARY_ATTENTION if rotary else opspec.ATTENTION
    return dict(zip(spec.input_names(), tensors, strict=True))


def node(spec: opspec.OpSpec, feeds: dict[str, torch.Tensor], attributes: dict[str, Any]) -> Node:
    kind = TYPES[next(iter(feeds.values())).dtype]
    inputs = {name: TYPES[tensor.dtype] for name, tensor in feeds.items()}
    return Node(spec.name, list(feeds), [], inputs, dict.fromkeys(spec.output_names(), kind), attributes)


@DTYPES
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_attention_is_the_kernel(
    library: Path, kernels: Kernels, dtype: torch.dtype, rotary: bool, in_place: bool
) -> None:
    """Its bits; the cache in place where past and present are one buffer."""
    feeds = attention_feeds(dtype, rotary)
    spec = opspec.ROTARY_ATTENTION if rotary else opspec.ATTENTION
    attributes = {**ATTENTION, **({"attention_factor": 1.25} if rotary else {})}
    session = node(spec, feeds, attributes).session(library)
    aliases = dict(spec.aliases) if in_place else {}
    found = run(session, feeds, {name: aliases.get(name) for name in spec.output_names()})
    tensors = list(feeds.values())
    rotation = (tensors[7], 1.25) if rotary else None
    expected = kernels.attention(tensors[:7], 0, rotation, scale=0.25, in_place=in_place)
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(tensor_of(value, wanted), wanted)


def experts(dtype: torch.dtype, count: int, hidden: int, inner: int) -> list[list[torch.Tensor]]:
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    return [[(torch.randn(shape) / 8).to(dtype) for _ in range(count)] for shape in shapes]


@DTYPES
@pytest.mark.parametrize("constant", [True, False])
def test_moe_is_the_kernel(library: Path, kernels: Kernels, dtype: torch.dtype, constant: bool) -> None:
    """Weights that are initializers, and weights that are fed."""
    x, logits = torch.randn(7, 32).to(dtype), torch.randn(7, 5).to(dtype)
    weights = experts(dtype, 5, 32, 24)
    names = opspec.MOE.input_names(5)
    matrices = dict(zip(names[2:], [each for one in zip(*weights, strict=True) for each in one], strict=True))
    feeds = {"hidden": x, "router_logits": logits} | ({} if constant else matrices)
    attributes = {"num_experts": 5, "top_k": 2, "norm_topk_prob": 0}
    tensors = [
        onnx.TensorProto(
            name=name,
            data_type=TYPES[dtype],
            dims=each.shape,
            raw_data=each.view(torch.uint8).numpy().tobytes(),
        )
        for name, each in (matrices if constant else {}).items()
    ]
    kinds = dict.fromkeys(feeds, TYPES[dtype])
    session = Node("Q2MoE", names, tensors, kinds, {"output": TYPES[dtype]}, attributes).session(library)
    (found,) = run(session, feeds, {"output": None})
    expected = kernels.moe(x, logits, weights, 2, False)
    assert torch.equal(tensor_of(found, expected), expected)
    with pytest.raises(Exception, match=r"Q2MoE node: router_logits has shape \[7, 4\], expected \[7, 5\]"):
        run(session, {**feeds, "router_logits": logits[:, :4]}, {"output": None})


@DTYPES
@pytest.mark.parametrize(("bits", "words"), [(4, torch.int32), (8, torch.uint8)])
def test_quantized_moe_is_the_kernel(
    library: Path, kernels: Kernels, dtype: torch.dtype, bits: int, words: torch.dtype
) -> None:
    """Codes as bytes, and as words of four of them."""
    sizes = ((3, 2 * 32, 64), (3, 64, 32))  # two rows of gate and up per column of down
    codes = [torch.randint(0, 256, (*size[:2], size[2] * bits // 8), dtype=torch.uint8) for size in sizes]
    scales = [(torch.rand(*size[:2], size[2] // 32) / 64).half() for size in sizes]
    x, logits = torch.randn(7, 64).to(dtype), torch.randn(7, 3).to(dtype)
    names = ["hidden", "router_logits", "gate_up", "gate_up_scale", "down", "down_scale"]
    seen = [each.view(words) for each in codes]
    feeds = dict(zip(names, [x, logits, seen[0], scales[0], seen[1], scales[1]], strict=True))
    kinds = {name: TYPES[tensor.dtype] for name, tensor in feeds.items()}
    attributes = {"num_experts": 3, "top_k": 2, "norm_topk_prob": 1, "bits": bits, "block_size": 32}
    output = {"output": TYPES[dtype]}
    session = Node("Q2QuantizedMoE", names, [], kinds, output, attributes).session(library)
    (found,) = run(session, feeds, {"output": None})
    packed = [codes[0], scales[0], codes[1], scales[1]]
    expected = kernels.quantized_moe(x, logits, packed, 2, True, bits, 32)
    assert torch.equal(tensor_of(found, expected), expected)
    with pytest.raises(Exception, match=r"down_scale has shape \[3, 64, 2\], expected \[3, 64, 1\]"):
        run(session, {**feeds, "down_scale": scales[1].repeat(1, 1, 2)}, {"output": None})
    with pytest.raises(Exception, match="the CUDA kernels round no activations"):
        rounding = {**attributes, "int8_activations": 1}
        Node("Q2QuantizedMoE", names, [], kinds, output, rounding).session(library)


def test_what_does_not_fit_is_refused(library: Path) -> None:
    feeds = attention_feeds(torch.float16, True)
    attributes = {**ATTENTION, "attention_factor": 1.0}
    session = node(opspec.ROTARY_ATTENTION, feeds, attributes).session(library)
    outputs: dict[str, str | None] = dict.fromkeys(opspec.ROTARY_ATTENTION.output_names())
    with pytest.raises(Exception, match=r"Q2RotaryAttention node: inv_freq has shape \[7\], expected \[8\]"):
        run(session, {**feeds, "inv_freq": feeds["inv_freq"][:7]}, outputs)
    with pytest.raises(Exception, match="attention_factor"):
        node(opspec.ROTARY_ATTENTION, feeds, ATTENTION).session(library)
    kinds = {"hidden": TYPES[torch.float16], "router_logits": TYPES[torch.float16]}
    names = opspec.MOE.input_names(1)
    mixed = kinds | dict.fromkeys(names[2:], TYPES[torch.float32])
    moe = {"num_experts": 1, "top_k": 1, "norm_topk_prob": 0}
    session = Node("Q2MoE", names, [], mixed, {"output": TYPES[torch.float16]}, moe).session(library)
    weights = [torch.zeros(shape) for shape in ((3, 4), (3, 4), (4, 3))]
    tensors: Sequence[torch.Tensor] = [torch.zeros(2, 4).half(), torch.zeros(2, 1).half(), *weights]
    with pytest.raises(Exception, match="the experts have another element type than hidden"):
        run(session, dict(zip(names, tensors, strict=True)), {"output": None})


def test_without_a_gpu_the_ops_are_not_run(host_kernels: Path) -> None:
    """ONNX Runtime knows the op, has no kernel for the CPU, says so, and takes no function body instead."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    library = glue(host_kernels, '"CUDAExecutionProvider"')
    feeds = attention_feeds(torch.float32, False)
    attributes = {**ATTENTION, "plugin_version": "1", "plugin_namespace": "q2export"}
    plain = node(opspec.ATTENTION, feeds, attributes)
    with_body = replace(plain, functions=[function_for(opspec.ATTENTION)])
    with_body.session(None)
    with pytest.raises(Exception, match="Could not find an implementation for Q2GroupQueryAttention"):
        with_body.session(library)
