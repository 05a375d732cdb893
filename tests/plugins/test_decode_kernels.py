"""Attention of 1 to 16 new tokens on the host: ragged caches, split or not, against float64 and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.host_cuda.gpus import A100, H200, L4, pretending, thread_order
from tests.plugins.kernels import KernelError, Kernels
from tests.plugins.test_csrc_kernels import attention_in_float64, frequencies
from tests.plugins.test_rotary_kernels import Misaligned, equal_bits, misaligned_copy, rotated_in_float64

NARROW = [torch.float16, torch.bfloat16]
SMALLEST = replace(A100, multiprocessors=1)  # nothing is split
LARGEST = replace(H200, multiprocessors=1024)  # every row is split as finely as can be
GPUS = {"h200": H200, "l4": L4, "smallest": SMALLEST, "largest": LARGEST}


@pytest.fixture(params=GPUS)
def on_gpus(kernels: Kernels, request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The kernels on one pretend GPU after another."""
    with pretending(kernels.library, GPUS[request.param]):
        yield kernels


def batch_of(
    past_lengths: Sequence[int], query_lengths: Sequence[int], heads: int, kv_heads: int, head_dim: int,
    dtype: torch.dtype, capacity: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Inputs of an op. What holds no token is NaN: the cache beyond a row's past, padding of new tokens."""
    sequence = max(query_lengths)
    capacity = capacity or max(past + new for past, new in zip(past_lengths, query_lengths, strict=True))
    rows = len(past_lengths)
    new = [torch.randn(rows, sequence, count, head_dim).to(dtype) for count in (heads, kv_heads, kv_heads)]
    past = [torch.randn(rows, kv_heads, capacity, head_dim).to(dtype) for _ in range(2)]
    for row in range(rows):
        for tensor in new:
            tensor[row, query_lengths[row] :] = math.nan
        for tensor in past:
            tensor[row, :, past_lengths[row] :] = math.nan
    return [*new, *past, torch.tensor(past_lengths), torch.tensor(query_lengths)]


def attention_in_torch(tensors: Sequence[Tensor], scale: float, window: int) -> Tensor:
    """PyTorch's own attention in the type of the inputs, row by row; zero for padding."""
    query, key, value, past_key, past_value, past_lengths, query_lengths = tensors
    output = torch.zeros_like(query)
    for row, (past, new) in enumerate(zip(past_lengths.tolist(), query_lengths.tolist(), strict=True)):
        if new == 0:
            continue
        keys = torch.cat((past_key[row, :, :past], key[row, :new].transpose(0, 1)), dim=1)
        values = torch.cat((past_value[row, :, :past], value[row, :new].transpose(0, 1)), dim=1)
        oldest = max(0, past + 1 - window) if window else 0
        keys, values = keys[:, oldest:], values[:, oldest:]
        position = past + torch.arange(new)[:, None]
        seen = torch.arange(oldest, past + new) <= position
        if window:
            seen &= torch.arange(oldest, past + new) > position - window
        heads_first = query[row, :new].transpose(0, 1)
        attended = torch.nn.functional.scaled_dot_product_attention(
            heads_first[None], keys[None], values[None], seen, scale=scale, enable_gqa=True
        )
        output[row, :new] = attended[0].transpose(0, 1)
    return output


def assert_as_good_as_torch(tensors: Sequence[Tensor], output: Tensor, scale: float, window: int = 0) -> None:
    """The error, relative to float64, is at most twice that of PyTorch in the same type; row by row."""
    expected = attention_in_float64(list(tensors), scale, window)
    ours = output.to(torch.float64) - expected
    theirs = attention_in_torch(tensors, scale, window).to(torch.float64) - expected
    for row in range(len(output)):
        bound = 2 * theirs[row].abs().max().item()
        assert ours[row].abs().max().item() <= bound, f"row {row}"
        assert ours[row].square().mean() <= 2 * theirs[row].square().mean(), f"row {row}"


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 6, 7, 8, 3, 20])
class TestGroups:
    def test_one_token(self, kernels: Kernels, dtype: torch.dtype, head_dim: int, group: int) -> None:
        tensors = batch_of([0, 5, 300, 601], [1, 1, 1, 1], 2 * group, 2, head_dim, dtype)
        output, _, _ = kernels.attention(tensors, scale=head_dim**-0.5)
        assert_as_good_as_torch(tensors, output, head_dim**-0.5)

    def test_several_tokens(self, kernels: Kernels, dtype: torch.dtype, head_dim: int, group: int) -> None:
        tensors = batch_of([0, 530, 291, 7], [3, 3, 2, 0], group, 1, head_dim, dtype)
        output, _, _ = kernels.attention(tensors, scale=head_dim**-0.5)
        assert_as_good_as_torch(tensors, output, head_dim**-0.5)


class TestGpus:
    """One result, however many blocks a row is split into."""

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("tokens", [1, 2, 5, 16])
    def test_splits(self, on_gpus: Kernels, head_dim: int, tokens: int) -> None:
        past = [1500, 0, 256, 1020]
        tensors = batch_of(past, [tokens, 1, tokens, max(1, tokens - 1)], 7, 1, head_dim, torch.float16)
        output, _, _ = on_gpus.attention(tensors, scale=head_dim**-0.5)
        assert_as_good_as_torch(tensors, output, head_dim**-0.5)

    @pytest.mark.parametrize("window", [1, 16, 100, 513])
    @pytest.mark.parametrize("tokens", [1, 4])
    def test_sliding_window(self, on_gpus: Kernels, window: int, tokens: int) -> None:
        tensors = batch_of([1500, 3, 511], [tokens, tokens, 1], 8, 1, 64, torch.bfloat16)
        output, _, _ = on_gpus.attention(tensors, window, scale=0.125)
        assert_as_good_as_torch(tensors, output, 0.125, window)

    @pytest.mark.parametrize("window", [93, 94, 500])
    @pytest.mark.parametrize("tokens", [2, 4])
    def test_keys_outside_the_window_are_not_read(self, on_gpus: Kernels, window: int, tokens: int) -> None:
        """They may hold anything. At 93 the first token's window begins where a tile does."""
        tensors = batch_of([1500], [tokens], 8, 1, 64, torch.float16)
        for cache in tensors[3:5]:
            cache[:, :, : 1500 + 1 - window] = math.nan
        output, _, _ = on_gpus.attention(tensors, window, scale=0.125)
        assert_as_good_as_torch(tensors, output, 0.125, window)

    def test_tile_borders(self, on_gpus: Kernels) -> None:
        """Totals one below, at and one above the sizes of tiles (here 16 or 64 keys) and of parts."""
        totals = [border + step for border in (16, 32, 64, 128, 256, 512) for step in (-1, 0, 1)]
        tensors = batch_of([total - 1 for total in totals], [1] * len(totals), 2, 1, 128, torch.float16)
        output, _, _ = on_gpus.attention(tensors, scale=0.1)
        assert_as_good_as_torch(tensors, output, 0.1)
        past, new = [max(0, total - 5) for total in totals], [min(total, 5) for total in totals]
        tensors = batch_of(past, new, 4, 1, 128, torch.float16)
        output, _, _ = on_gpus.attention(tensors, scale=0.1)
        assert_as_good_as_torch(tensors, output, 0.1)

    def test_padding_and_idle_rows_are_zero(self, on_gpus: Kernels) -> None:
        tensors = batch_of([700, 700, 0, 700], [0, 2, 0, 4], 8, 1, 128, torch.bfloat16)
        output, _, _ = on_gpus.attention(tensors, scale=0.1)
        for row, length in enumerate(tensors[6].tolist()):
            assert bool((output[row, length:] == 0).all())
            assert bool((output[row, :length] != 0).all())


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", NARROW)
def test_rotary_attention(kernels: Kernels, dtype: torch.dtype, in_place: bool) -> None:
    """Rotated to the new positions, appended and split, in one call."""
    tensors = batch_of([900, 1, 0], [2, 1, 2], 14, 2, 64, dtype)
    rotation = (frequencies(64), 1.0694)
    output, _, _ = kernels.attention(tensors, 0, rotation, scale=0.125, in_place=in_place)
    positions = tensors[5][:, None] + torch.arange(2)
    turned = [rotated_in_float64(x, positions, *rotation).to(dtype) for x in tensors[:2]]
    assert_as_good_as_torch([*turned, *tensors[2:]], output, 0.125)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("tokens", [1, 4])
def test_the_order_of_threads_changes_no_bit(kernels: Kernels, order: int, tokens: int) -> None:
    tensors = batch_of([777, 40], [tokens, 1], 7, 1, 128, torch.float16)
    expected, _, _ = kernels.attention(tensors, scale=0.1)
    with thread_order(kernels.library, order + 1):
        output, _, _ = kernels.attention(tensors, scale=0.1)
    assert equal_bits(output, expected)


@pytest.mark.parametrize("length", [1, 500])
def test_large_scores_do_not_overflow(kernels: Kernels, length: int) -> None:
    tensors = batch_of([length], [1], 4, 2, 64, torch.float16)
    output, _, _ = kernels.attention(tensors, scale=100.0)
    assert_as_good_as_torch(tensors, output, 100.0)


def test_the_highest_score_may_come_last_or_first(kernels: Kernels) -> None:
    """One key of far higher score outweighs the parts of all others, wherever it is."""
    for position in (0, 130, 899):
        tensors = batch_of([899], [1], 2, 1, 128, torch.float16)
        query, key, value, past_key, past_value, *_ = tensors
        if position < 899:
            key, value = past_key[:, :, position], past_value[:, :, position]
        key.view(128).copy_(4 * query[0, 0, 0])
        output, _, _ = kernels.attention(tensors, scale=1.0)
        assert torch.equal(output[0, 0, 0], value.view(128))


def test_nan_in_a_query_stays_with_its_rows(kernels: Kernels) -> None:
    tensors = batch_of([600], [2], 4, 1, 64, torch.float16)
    tensors[0][0, 1, 2] = math.nan
    output, _, _ = kernels.attention(tensors, scale=0.125)
    spoiled = output.isnan().all(dim=-1)[0]
    assert spoiled.tolist() == [[False] * 4, [False, False, True, False]]
    assert bool(output[0][~spoiled].isfinite().all())


@pytest.mark.parametrize("scale", [-0.125, 0.0])
def test_scales_that_are_not_positive(kernels: Kernels, scale: float) -> None:
    """They reverse or level the order of the scores, which the tensor-core kernels build on."""
    tensors = batch_of([200], [2], 4, 1, 64, torch.float16)
    output, _, _ = kernels.attention(tensors, scale=scale)
    assert_as_good_as_torch(tensors, output, scale)


@pytest.mark.parametrize(("which", "name"), [(0, "query"), (3, "present_key"), (4, "present_value")])
@pytest.mark.parametrize("sequence", [2, 17], ids=["decode", "prefill"])
def test_misaligned_tensors_are_refused(host_kernels: Path, which: int, name: str, sequence: int) -> None:
    class OneMisaligned(Kernels):
        def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
            copies = super().moved(tensors)
            copies[which] = misaligned_copy(copies[which])
            return copies

    tensors = batch_of([200], [sequence], 4, 1, 64, torch.float16)
    message = rf"invalid argument: group_query_attention: {name} is at 0x\w+, expected a multiple of 16 bytes"
    with pytest.raises(KernelError, match=message):
        OneMisaligned(host_kernels).attention(tensors, scale=0.125)


def test_a_misaligned_query_is_rotated_into_the_workspace(host_kernels: Path) -> None:
    tensors, rotation = batch_of([200], [2], 4, 1, 64, torch.float16), (frequencies(64), 1.0)
    output, _, _ = Misaligned(host_kernels).attention(tensors, 0, rotation, scale=0.125)
    aligned, _, _ = Kernels(host_kernels).attention(tensors, 0, rotation, scale=0.125)
    assert torch.equal(output, aligned)


@pytest.mark.parametrize("past", [-4, 1021, 1024, 2**40])
@pytest.mark.parametrize("new", [-1, 3, 99])
def test_lengths_out_of_range_stay_in_the_buffers(kernels: Kernels, past: int, new: int) -> None:
    *tensors, _, _ = batch_of([1021], [3], 7, 1, 128, torch.float16)
    finite = [tensor.nan_to_num(0.0) for tensor in tensors]
    lengths = [torch.tensor([past]), torch.tensor([new])]
    for rotation in (None, (frequencies(128), 1.0)):
        output, _, _ = kernels.attention([*finite, *lengths], 0, rotation, scale=0.1)
        assert bool(output.isfinite().all())


def test_a_long_cache(kernels: Kernels) -> None:
    """131,072 positions, the longest context, at the end of a cache of which each part is seen."""
    tensors = batch_of([131071], [1], 2, 1, 64, torch.bfloat16)
    output, _, _ = kernels.attention(tensors, scale=0.125)
    assert_as_good_as_torch(tensors, output, 0.125)
