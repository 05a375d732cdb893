"""The kernels under PyTorch, with the kernels compiled for the host in place of a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.torch_decoder import TorchDecoder
from q2export.contracts import opspec
from q2export.errors import ExportError, GenerationError
from q2export.exporter.export import load_source
from q2export.exporter.graph.ops.attention import group_query_attention_reference
from q2export.exporter.graph.ops.moe import moe_reference
from q2export.exporter.graph.ops.rotary import rotary_embedding_reference
from q2export.plugins.tensorrt import kernels
from q2export.plugins.tensorrt.torch_ops import implementation, in_place_schema
from tests.helpers.checkpoints import CHECKPOINTS


@pytest.fixture(scope="module", autouse=True)
def library(host_kernels: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LIBRARY", host_kernels)
        yield


def attention_inputs() -> list[Tensor]:
    query, key, value = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2, 8)
    past_key, past_value = torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 8)
    return [query, key, value, past_key, past_value, torch.tensor([5, 0]), torch.tensor([3, 2])]


def test_rotary_equals_the_reference() -> None:
    x, positions, inv_freq = torch.randn(2, 3, 6, 8), torch.tensor([[0, 1, 2], [9, 70, 4]]), torch.rand(4)
    y = implementation(opspec.ROTARY, in_place=False)(x, positions, inv_freq, 1.25)
    torch.testing.assert_close(y, rotary_embedding_reference(x, positions, inv_freq, 1.25))


def test_functional_attention_leaves_the_cache_alone() -> None:
    inputs, attributes = attention_inputs(), (6, 2, 8**-0.5, 4)
    kept = [tensor.clone() for tensor in inputs]
    found = implementation(opspec.ATTENTION, in_place=False)(*inputs, *attributes)
    expected = group_query_attention_reference(*kept, *attributes)
    assert all(torch.equal(one, other) for one, other in zip(inputs, kept, strict=True))
    torch.testing.assert_close(found[0][0], expected[0][0])
    torch.testing.assert_close(found[0][1, :2], expected[0][1, :2])  # the third token is padding
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_in_place_attention_returns_the_output_and_fills_the_cache() -> None:
    inputs, attributes = attention_inputs(), (6, 2, 8**-0.5, 0)
    functional = implementation(opspec.ATTENTION, in_place=False)(*inputs, *attributes)
    output = implementation(opspec.ATTENTION, in_place=True)(*inputs, *attributes)
    assert torch.equal(output, functional[0])
    assert torch.equal(inputs[3], functional[1]) and torch.equal(inputs[4], functional[2])


def test_moe_takes_lists_of_experts() -> None:
    hidden, logits = torch.randn(5, 16), torch.randn(5, 6)
    gate, up = ([torch.randn(8, 16) for _ in range(6)] for _ in range(2))
    down = [torch.randn(16, 8) for _ in range(6)]
    arguments = (hidden, logits, gate, up, down, 6, 2, 1)
    found = implementation(opspec.MOE, in_place=False)(*arguments)
    torch.testing.assert_close(found, moe_reference(*arguments))
    with pytest.raises(GenerationError, match=r"Q2MoE: bfloat16_activations is 1, expected 0: .* CPU"):
        implementation(opspec.MOE, in_place=False)(*arguments, 1)


def test_the_in_place_schema_says_what_is_written() -> None:
    schema = torch._C.parse_schema(in_place_schema(opspec.ROTARY_ATTENTION))
    written = [each.name for each in schema.arguments if each.alias_info and each.alias_info.is_write]
    assert written == ["past_key", "past_value"]
    assert len(schema.returns) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to(torch.float64), "expected float32 or float16 or bfloat16, found float64"),
        (
            lambda x: x.transpose(0, 1),
            "x must be torch.float32 on cpu and contiguous, found .* not contiguous",
        ),
        (lambda x: x[0], r"input 'x' must be \[B, S, Hq, D\], found 3 dimensions"),
    ],
)
def test_wrong_tensors_are_refused(change: object, message: str) -> None:
    x, positions = torch.randn(2, 3, 6, 8), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises((GenerationError, ExportError), match=message):
        implementation(opspec.ROTARY, in_place=False)(change(x), positions, torch.rand(4), 1.0)  # type: ignore[operator]


def test_positions_of_the_wrong_type_are_refused_by_name() -> None:
    x, positions = torch.randn(1, 1, 2, 8), torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(GenerationError, match=r"position_ids must be torch.int64 .* found torch.int32"):
        implementation(opspec.ROTARY, in_place=False)(x, positions, torch.rand(4), 1.0)


@pytest.fixture(scope="module")
def in_place_on_cpu() -> Iterator[None]:
    spec = opspec.ROTARY_ATTENTION
    torch_library = torch.library.Library(opspec.DOMAIN, "FRAGMENT")
    torch_library.define(in_place_schema(spec))
    torch_library.impl(f"{spec.torch_name}_", implementation(spec, in_place=True), "CPU")
    yield
    torch_library._destroy()


@pytest.mark.usefixtures("in_place_on_cpu")
@pytest.mark.parametrize("name", ["qwen2-tiny", "qwen2-moe-tiny"])
def test_a_ragged_batch_generates_what_transformers_does(name: str) -> None:
    """Both in float32: the decoder over its cache, transformers over the whole text again for every token."""
    transformers = pytest.importorskip("transformers")
    source = load_source(CHECKPOINTS / name)
    prompts = [[5, 17, 300, 42, 8], [9, 1]]
    decoder = TorchDecoder(source, dtype=torch.float32, device=torch.device("cpu"), batch=2, capacity=20)
    found = decoder.generate(prompts, 12)
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert tokens == ids[len(prompt) :]
    with pytest.raises(ExportError, match=r"5 \+ 16 tokens exceed the capacity of 20"):
        decoder.generate(prompts, 16)
    with pytest.raises(ExportError, match="expected 2 prompts of at least one token"):
        decoder.generate([[1]], 2)


def test_a_decoder_needs_the_kernels() -> None:
    if hasattr(torch.ops.q2export, "rotary_attention_"):
        pytest.skip("the in-place operator is registered in this process")
    source = load_source(CHECKPOINTS / "qwen2-tiny")
    with pytest.raises(ExportError, match=r"call q2export.plugins.tensorrt.torch_ops.register\(\)"):
        TorchDecoder(source, dtype=torch.float32, device=torch.device("cpu"), batch=1, capacity=8)
