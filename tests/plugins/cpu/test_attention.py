"""Attention on the KV cache, against the references of the torch ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from q2export.exporter.graph.ops.attention import group_query_attention_reference
from q2export.exporter.graph.ops.rotary import rotary_embedding_reference
from tests.plugins.cpu.kernels import BFLOAT16, FLOAT16, FLOAT32, CpuKernels, Floats, KernelError, Step

TORCH = {FLOAT32: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
FACTOR = 1.25

HEADS = [(14, 2, 64), (3, 1, 10), (4, 4, 80)]
"""Query heads, KV heads, head_dim: groups of 7, 3 and 1; less than a vector, no multiple of one."""

LENGTHS = [
    (9, 1, [0], [1]),
    (700, 1, [5, 0, 699], [1, 0, 1]),
    (600, 37, [300, 0], [37, 20]),
    (300, 3, [256, 255], [3, 1]),
]
"""Capacity, sequence, past and query lengths: full caches, blocks that just begin, padding, a row at rest."""


def random(*shape: int) -> Floats:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def bits(tensor: torch.Tensor) -> NDArray[np.generic]:
    """A tensor as the kernels take it."""
    found: NDArray[np.generic]
    found = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.itemsize == 2 else tensor.numpy()
    return found


def cache(past: Sequence[int], *shape: int, dtype: int) -> torch.Tensor:
    """Random up to each row's past, NaN beyond it."""
    made = torch.tensor(random(*shape)).to(TORCH[dtype])
    for row, length in enumerate(past):
        made[row, :, length:] = torch.nan
    return made


def step_of(
    heads: tuple[int, int, int],
    capacity: int,
    sequence: int,
    past: Sequence[int],
    new: Sequence[int],
    window: int = 0,
    dtype: int = FLOAT32,
) -> Step:
    num_heads, kv_heads, dim = heads
    batch = len(past)
    caches = [cache(past, batch, kv_heads, capacity, dim, dtype=dtype) for _ in range(2)]
    inv_freq = (10000.0 ** (-np.arange(dim // 2) * 2 / dim)).astype(np.float32)
    query, key = random(batch, sequence, num_heads, dim), random(batch, sequence, kv_heads, dim)
    value = random(batch, sequence, kv_heads, dim)[..., ::-1].copy()
    held = [bits(each) for each in caches]
    return Step(query, key, value, held[0], held[1], past, new, inv_freq, window, dtype, FACTOR)


def expected(step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = TORCH[step.cache_dtype]
    past, new = torch.tensor(step.past_lengths), torch.tensor(step.query_lengths)
    query, key, value = (torch.tensor(each) for each in (step.query, step.key, step.value))
    if step.inv_freq is not None:
        positions = past[:, None] + torch.arange(query.shape[1])
        inv_freq = torch.tensor(step.inv_freq)
        query = rotary_embedding_reference(query, positions, inv_freq, step.attention_factor)
        key = rotary_embedding_reference(key, positions, inv_freq, step.attention_factor)
    caches = [
        torch.tensor(each.view(np.int16)).view(dtype) if dtype.itemsize == 2 else torch.tensor(each)
        for each in (step.key_cache, step.value_cache)
    ]
    heads, kv_heads, dim = query.shape[2], key.shape[2], query.shape[3]
    return group_query_attention_reference(
        query,
        key.to(dtype),
        value.to(dtype),
        caches[0],
        caches[1],
        past,
        new,
        heads,
        kv_heads,
        dim**-0.5,
        step.sliding_window,
    )


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize("heads", HEADS)
def test_equals_the_reference(
    kernels: CpuKernels, heads: tuple[int, int, int], window: int, dtype: int
) -> None:
    for lengths in LENGTHS:
        step = step_of(heads, *lengths, window, dtype)
        for each in (step, replace(step, inv_freq=None)):
            output, key_cache, value_cache = kernels.attention(each)
            wanted, wanted_key, wanted_value = expected(each)
            # Of 16 bits, a key may round the other way where the last bits of its rotation differ.
            tolerance = {FLOAT32: 2e-5, FLOAT16: 4e-3, BFLOAT16: 3e-2}[dtype]
            for row, length in enumerate(each.query_lengths):
                np.testing.assert_allclose(output[row, :length], wanted[row, :length], atol=tolerance, rtol=0)
                assert (output[row, length:] == 0).all()
            np.testing.assert_array_equal(value_cache, bits(wanted_value))
            if dtype == FLOAT32:
                np.testing.assert_allclose(
                    key_cache.astype(np.float32), wanted_key, atol=1e-5
                )  # NaN where it was


@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", HEADS)
def test_a_token_does_not_depend_on_how_a_prompt_is_cut(
    kernels: CpuKernels, heads: tuple[int, int, int], window: int, dtype: int
) -> None:
    """A prompt at once, in chunks of any length, and token by token beside another row: the same bits."""
    step = step_of(heads, 400, 300, [20], [300], window, dtype)
    whole, key_cache, value_cache = kernels.attention(step)
    other = step_of(heads, 400, 1, [399], [1], window, dtype)
    for first, count in ((0, 250), (250, 17), (299, 1)):
        cut: dict[str, Any] = {
            name: getattr(step, name)[:, first : first + count] for name in ("query", "key", "value")
        }
        caches: dict[str, Any] = {"key_cache": key_cache, "value_cache": value_cache}
        chunk = replace(step, **cut, **caches, past_lengths=[20 + first], query_lengths=[count])
        found, again, _ = kernels.attention(chunk)
        np.testing.assert_array_equal(found, whole[:, first : first + count])
        np.testing.assert_array_equal(again, key_cache)
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(other, name), getattr(chunk, name)])
        for name in ("query", "key", "value", "key_cache", "value_cache")
    }
    both = replace(chunk, **joined, past_lengths=[399, 319], query_lengths=[1, 1])
    np.testing.assert_array_equal(kernels.attention(both)[0][1], whole[0, 299:])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [0, 3])
def test_a_token_beyond_sight_does_not_matter(
    kernels: CpuKernels, heads: tuple[int, int, int], window: int
) -> None:
    """Not even where its key and value are infinite."""
    step = step_of(heads, 300, 40, [250], [40], window)
    clean = kernels.attention(step)[0]
    for name in ("key", "value"):
        getattr(step, name)[:, 21] = np.inf
    found = kernels.attention(step)[0]
    np.testing.assert_array_equal(found[:, :21], clean[:, :21])
    if window:
        np.testing.assert_array_equal(found[:, 21 + window :], clean[:, 21 + window :])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 130, 299])
def test_a_score_that_is_no_number_is_not_passed_over(kernels: CpuKernels, place: int, bad: float) -> None:
    """Those who see it get NaN, as of any softmax, however many keys come after it."""
    step = step_of((14, 2, 64), 600, 3, [300], [3])
    step.key_cache[:, 1, place] = bad
    output = kernels.attention(replace(step, query=abs(step.query), inv_freq=None))[0]
    assert np.isnan(output[:, :, 7:]).all()
    assert not np.isnan(output[:, :, :7]).any()


@pytest.mark.parametrize(
    ("past", "new", "message"),
    [
        ([3, 9], [1, 2], "row 1 has past_length 9 and query_length 2"),
        ([-1, 0], [1, 1], "row 0 has past_length -1"),
        ([0, 0], [1, 3], "row 1 has past_length 0 and query_length 3, expected lengths of 0 .. 2"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    kernels: CpuKernels, past: list[int], new: list[int], message: str
) -> None:
    step = replace(step_of((2, 1, 8), 10, 2, [1, 1], [1, 1]), past_lengths=past, query_lengths=new)
    with pytest.raises(KernelError, match=f"attention: {message}"):
        kernels.attention(step)


def test_heads_that_do_not_divide_are_refused(kernels: CpuKernels) -> None:
    with pytest.raises(KernelError, match="num_heads is 3, expected a multiple of 2"):
        kernels.attention(step_of((3, 2, 8), 10, 1, [1], [1]))
