"""The exporter's modules end to end on a GPU over the kernels, against transformers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernels.torch_decoder import TorchDecoder
from q2export.exporter.export import load_source
from tests.helpers.checkpoints import CHECKPOINTS

PROMPTS = [[5, 17, 300, 42, 8, 71, 12], [9, 1]]

pytestmark = pytest.mark.usefixtures("operators")


def transformers_logits(name: str, dtype: torch.dtype, ids: list[int]) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=dtype).cuda()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids], device="cuda")).logits[0].float()
    return logits


@pytest.mark.parametrize("name", ["qwen2-tiny", "qwen2-moe-tiny"])
def test_greedy_tokens_in_float32_are_those_of_transformers(name: str) -> None:
    """The decode steps run as a CUDA graph; transformers checks every choice over the whole text."""
    decoder = TorchDecoder(
        load_source(CHECKPOINTS / name),
        dtype=torch.float32,
        device=torch.device("cuda"),
        batch=2,
        capacity=80,
    )
    for prompt, tokens in zip(PROMPTS, decoder.generate(PROMPTS, 64), strict=True):
        logits = transformers_logits(name, torch.float32, [*prompt, *tokens])
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", ["qwen2-tiny", "qwen2-moe-tiny"])
@pytest.mark.parametrize("length", [7, 40])
def test_bfloat16_logits_are_as_near_as_those_of_transformers(name: str, length: int) -> None:
    torch.manual_seed(length)
    ids = torch.randint(0, 400, (length,)).tolist()
    decoder = TorchDecoder(
        load_source(CHECKPOINTS / name),
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        batch=1,
        capacity=64,
    )
    everywhere = torch.arange(length, device="cuda")[None]
    query_lengths = torch.tensor([length], device="cuda")
    found = decoder.step(torch.tensor([ids], device="cuda"), query_lengths, everywhere)[0]
    exact = transformers_logits(name, torch.float32, ids)
    usual = transformers_logits(name, torch.bfloat16, ids)
    # Root mean squares: a single token of a mixture may go to another expert in either.
    ours, theirs = ((each - exact).square().mean().sqrt().item() for each in (found, usual))
    assert ours <= 2 * theirs
