"""Random shapes on a GPU against float32: error at most twice that of PyTorch in the same dtype."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from q2export.exporter.graph.ops.moe import moe_reference, route
from tests.plugins.kernels import Kernels

DTYPES = [torch.float16, torch.bfloat16]
BORDERS = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000)
"""Lengths beside every size a tile may have."""


def error(output: Tensor, exact: Tensor) -> float:
    return (output.float() - exact).abs().max().item()


def attention_exact(
    query: Tensor, keys: Tensor, values: Tensor, past: int, window: int, dtype: torch.dtype
) -> Tensor:
    """One row on the GPU in ``dtype``: query ``[S, Hq, D]``, keys and values ``[Hkv, total, D]``."""
    query, keys, values = (each.cuda().to(dtype)[None] for each in (query, keys, values))
    position = torch.arange(past, past + query.shape[1], device="cuda")[:, None]
    column = torch.arange(keys.shape[2], device="cuda")
    visible = (column <= position) & ((column > position - window) if window else True)
    output = functional.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True
    )
    return output.transpose(1, 2)[0].float().cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 6, 7, 8])
@pytest.mark.parametrize("sequence", [1, 5, 16, 17, 64, 200])
def test_attention(kernels: Kernels, dtype: torch.dtype, head_dim: int, group: int, sequence: int) -> None:
    """A ragged batch, every length beside a tile's border; what lies beyond the lengths is NaN."""
    rng = random.Random(f"{dtype}{head_dim}{group}{sequence}")
    torch.manual_seed(rng.randrange(1 << 30))
    kv_heads, window = 2, rng.choice([0, 0, 33])
    lengths = [(rng.choice(BORDERS), min(sequence, rng.choice(BORDERS))) for _ in range(3)]
    lengths.append((0, sequence))
    batch, capacity = len(lengths), 1000 + sequence
    query = torch.full((batch, sequence, group * kv_heads, head_dim), float("nan"), dtype=dtype)
    key, value = (
        torch.full((batch, sequence, kv_heads, head_dim), float("nan"), dtype=dtype) for _ in range(2)
    )
    caches = [torch.full((batch, kv_heads, capacity, head_dim), float("nan"), dtype=dtype) for _ in range(2)]
    for row, (past, fresh) in enumerate(lengths):
        query[row, :fresh] = torch.randn(fresh, group * kv_heads, head_dim)
        for new, cache in zip((key, value), caches, strict=True):
            new[row, :fresh] = torch.randn(fresh, kv_heads, head_dim)
            cache[row, :, :past] = torch.randn(kv_heads, past, head_dim)
    past_lengths, query_lengths = (torch.tensor(each) for each in zip(*lengths, strict=True))
    output, present_key, present_value = kernels.attention(
        [query, key, value, *caches, past_lengths, query_lengths], window, scale=head_dim**-0.5
    )
    for row, (past, fresh) in enumerate(lengths):
        total = past + fresh
        parts = (query[row, :fresh], present_key[row, :, :total], present_value[row, :, :total], past, window)
        exact, usual = attention_exact(*parts, torch.float32), attention_exact(*parts, dtype)
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert error(output[row, :fresh], exact) <= max(2 * error(usual, exact), floor)
        assert not output[row, fresh:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k"), [(60, 4), (64, 8)])
@pytest.mark.parametrize("tokens", [1, 3, 8, 16, 17, 64, 129, 1000])
def test_moe(kernels: Kernels, dtype: torch.dtype, experts: int, top_k: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    hidden_size, intermediate = 256, 192
    hidden = torch.randn(tokens, hidden_size).to(dtype)
    logits = torch.randn(tokens, experts).to(dtype)
    logits[:, ::3] += 3.0  # unbalanced, and most experts idle where there are few tokens
    gate, up = (
        [(torch.randn(intermediate, hidden_size) * hidden_size**-0.5).to(dtype) for _ in range(experts)]
        for _ in range(2)
    )
    down = [(torch.randn(hidden_size, intermediate) * intermediate**-0.5).to(dtype) for _ in range(experts)]
    output = kernels.moe(hidden, logits, [gate, up, down], top_k, False)
    wide = [[each.float() for each in kind] for kind in (gate, up, down)]
    exact = moe_reference(hidden.float(), logits, *wide, experts, top_k, 0)
    usual = moe_reference(hidden, logits, gate, up, down, experts, top_k, 0)
    assert error(output, exact) <= max(
        2 * error(usual, exact), torch.finfo(dtype).eps * exact.abs().max().item()
    )
    assert route(logits, top_k)[1].shape == (tokens, top_k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_have_the_same_bits(kernels: Kernels, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, logits = torch.randn(100, 128).to(dtype), torch.randn(100, 64).to(dtype)
    weights = [
        [torch.randn(*shape).to(dtype) for _ in range(64)] for shape in ((96, 128), (96, 128), (128, 96))
    ]
    runs = [kernels.moe(hidden, logits, weights, 8, True) for _ in range(5)]
    assert all(torch.equal(runs[0], other) for other in runs[1:])
