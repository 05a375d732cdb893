"""The reference kernels, compiled for the host, against the torch references of the ops and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from q2export.exporter.graph.ops.attention import group_query_attention_reference
from q2export.exporter.graph.ops.moe import moe_reference
from q2export.exporter.graph.ops.rotary import rotary_embedding_reference
from tests.plugins.kernels import KernelError, Kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def assert_near(actual: Tensor, expected: Tensor, roundings: float = 2.0) -> None:
    """Within some roundings of the largest value of ``expected``, which is float64.

    Sums are float32, so that float32 sees the rounding of every term and the narrow types only the last one.
    """
    roundings *= 8 if actual.dtype == torch.float32 else 1
    error = (actual.to(torch.float64) - expected).abs().max().item()
    bound = roundings * EPSILON[actual.dtype] * max(1.0, expected.abs().max().item())
    assert error <= bound, f"error {error}, bound {bound}"


def frequencies(head_dim: int) -> Tensor:
    return 1e6 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim).to(torch.float32)


class TestRotary:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("head_dim", [2, 64, 128])
    def test_equals_float64(self, kernels: Kernels, dtype: torch.dtype, head_dim: int) -> None:
        x = torch.randn(2, 3, 7, head_dim).to(dtype)
        position_ids = torch.tensor([[0, 1, 2], [32767, 131071, 5]])
        inv_freq = frequencies(head_dim)
        y = kernels.rotary_embedding(x, position_ids, inv_freq, 1.1386294)
        # The angle is rounded to float32, as the specification says; everything after it is exact here.
        angle = (position_ids.to(torch.float32)[:, :, None, None] * inv_freq).to(torch.float64)
        first, second = x.to(torch.float64).chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.polar(torch.full_like(angle, 1.1386294), angle)
        assert_near(y, torch.cat((turned.real, turned.imag), dim=-1), roundings=1.0)

    def test_zero_position_and_no_tokens(self, kernels: Kernels) -> None:
        x = torch.randn(1, 1, 2, 4)
        assert torch.equal(
            kernels.rotary_embedding(x, torch.zeros(1, 1, dtype=torch.int64), frequencies(4), 1.0), x
        )
        none = torch.empty(0, 3, 2, 4)
        empty = kernels.rotary_embedding(none, torch.empty(0, 3, dtype=torch.int64), frequencies(4), 1.0)
        assert empty.shape == none.shape

    def test_odd_head_dim_is_refused(self, kernels: Kernels) -> None:
        with pytest.raises(KernelError, match=r"invalid argument: .*head_dim is 5, expected a multiple of 2"):
            kernels.rotary_embedding(torch.randn(1, 1, 2, 5), torch.zeros(1, 1).long(), frequencies(4), 1.0)


def ragged_batch(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Rows: a fresh prompt, a chunk on top of a past, one token on a long past, an idle row.

    Cache positions that hold no token are NaN, and so are the tokens of the query beyond its length.
    """
    past_lengths = torch.tensor([0, 3, 150, 7])
    query_lengths = torch.tensor([5, 4, 1, 0])
    batch, sequence, capacity = 4, 5, 155
    query = torch.randn(batch, sequence, heads, head_dim)
    key = torch.randn(batch, sequence, kv_heads, head_dim)
    value = torch.randn(batch, sequence, kv_heads, head_dim)
    past_key = torch.randn(batch, kv_heads, capacity, head_dim)
    past_value = torch.randn(batch, kv_heads, capacity, head_dim)
    for row in range(batch):
        for new in (query, key, value):
            new[row, query_lengths[row] :] = math.nan
        for past in (past_key, past_value):
            past[row, :, past_lengths[row] :] = math.nan
    typed = [tensor.to(dtype) for tensor in (query, key, value, past_key, past_value)]
    return [*typed, past_lengths, query_lengths]


def attention_in_float64(tensors: list[Tensor], scale: float, window: int) -> Tensor:
    """One softmax per token and head, written out; zero for padding."""
    query, key, value, past_key, past_value, past_lengths, query_lengths = tensors
    output = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[2] // key.shape[2]
    for b in range(query.shape[0]):
        past, fresh = int(past_lengths[b]), int(query_lengths[b])
        for h in range(query.shape[2]):
            g = h // group
            keys = torch.cat((past_key[b, g, :past], key[b, :fresh, g])).to(torch.float64)
            values = torch.cat((past_value[b, g, :past], value[b, :fresh, g])).to(torch.float64)
            for s in range(fresh):
                end = past + s + 1
                begin = max(0, end - window) if window else 0
                scores = keys[begin:end] @ query[b, s, h].to(torch.float64) * scale
                output[b, s, h] = scores.softmax(dim=0) @ values[begin:end]
    return output


class TestAttention:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("heads", "kv_heads", "head_dim"),
        [(2, 2, 64), (6, 1, 128), (14, 2, 64), (8, 1, 128), (3, 1, 20), (1, 1, 256)],
    )
    @pytest.mark.parametrize("window", [0, 3])
    def test_equals_float64(
        self, kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, window: int
    ) -> None:
        tensors = ragged_batch(heads, kv_heads, head_dim, dtype)
        output, _, _ = kernels.attention(tensors, window, scale=head_dim**-0.5)
        expected = attention_in_float64(tensors, head_dim**-0.5, window)
        assert_near(output, expected, roundings=1.0)

    @pytest.mark.parametrize("in_place", [True, False])
    def test_cache_equals_torch_bit_for_bit(self, kernels: Kernels, in_place: bool) -> None:
        tensors = ragged_batch(14, 2, 64, torch.float16)
        _, *present = kernels.attention(tensors, scale=0.125, in_place=in_place)
        _, *expected = group_query_attention_reference(*tensors, 14, 2, 0.125, 0)
        for ours, theirs in zip(present, expected, strict=True):
            assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rotary_attention_is_the_two_ops_composed(self, kernels: Kernels, dtype: torch.dtype) -> None:
        tensors = ragged_batch(14, 2, 64, dtype)
        query, key, *rest = tensors
        inv_freq, factor = frequencies(64), 1.07
        position_ids = rest[3][:, None] + torch.arange(query.shape[1])
        rotated = [kernels.rotary_embedding(x, position_ids, inv_freq, factor) for x in (query, key)]
        expected = kernels.attention([*rotated, *rest], 4, scale=0.125)
        fused = kernels.attention(tensors, 4, (inv_freq, factor), scale=0.125)
        for ours, theirs in zip(fused, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)

    def test_equals_the_torch_references(self, kernels: Kernels) -> None:
        tensors = ragged_batch(7, 1, 64, torch.float32)
        query, key, *rest = tensors
        inv_freq = frequencies(64)
        position_ids = rest[3][:, None] + torch.arange(query.shape[1])
        rotated = [rotary_embedding_reference(x, position_ids, inv_freq, 1.0) for x in (query, key)]
        expected, _, _ = group_query_attention_reference(*rotated, *rest, 7, 1, 0.125, 0)
        output, _, _ = kernels.attention(tensors, 0, (inv_freq, 1.0), scale=0.125)
        for row, length in enumerate(rest[4].tolist()):
            torch.testing.assert_close(output[row, :length], expected[row, :length], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("past", [-4, 153, 155, 2**40])
    def test_lengths_out_of_range_stay_in_the_buffers(self, kernels: Kernels, past: int) -> None:
        query, key, value, past_key, past_value, *_ = ragged_batch(2, 1, 64, torch.float32)
        clean = [tensor.nan_to_num(0.0) for tensor in (query, key, value, past_key, past_value)]
        lengths = [torch.full((4,), past), torch.tensor([5, -1, 99, 2])]
        output, _, _ = kernels.attention([*clean, *lengths], scale=0.125)
        assert bool(output.isfinite().all())

    def test_large_scores_do_not_overflow(self, kernels: Kernels) -> None:
        tensors = ragged_batch(2, 1, 64, torch.float32)
        output, _, _ = kernels.attention(tensors, scale=100.0)
        assert_near(output, attention_in_float64(tensors, 100.0, 0), roundings=200.0)

    @pytest.mark.parametrize(
        ("heads", "kv_heads", "head_dim", "message"),
        [
            (3, 2, 64, r"num_heads is 3, expected a multiple of 2"),
            (1, 1, 257, r"head_dim is 257, expected 1 .. 256"),
        ],
    )
    def test_shapes_are_refused(
        self, kernels: Kernels, heads: int, kv_heads: int, head_dim: int, message: str
    ) -> None:
        with pytest.raises(KernelError, match=f"invalid argument: group_query_attention: {message}"):
            kernels.attention(ragged_batch(heads, kv_heads, head_dim, torch.float32), scale=1.0)


def experts(count: int, hidden: int, intermediate: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Gate, up and down of ``count`` experts."""

    def weights(rows: int, columns: int) -> list[Tensor]:
        return [(torch.randn(rows, columns) / math.sqrt(columns)).to(dtype) for _ in range(count)]

    return [weights(intermediate, hidden), weights(intermediate, hidden), weights(hidden, intermediate)]


def moe_in_float64(
    hidden: Tensor, logits: Tensor, weights: list[list[Tensor]], top_k: int, norm: bool
) -> Tensor:
    """Token by token; among equal logits the lower index first."""
    output = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, x in enumerate(hidden.to(torch.float64)):
        probability = logits[token].to(torch.float64).softmax(dim=0)
        order = sorted(range(len(probability)), key=lambda e: (-logits[token, e].item(), e))[:top_k]
        divisor = probability[order].sum() if norm else 1.0
        for e in order:
            gate, up, down = (kind[e].to(torch.float64) for kind in weights)
            activated = torch.nn.functional.silu(gate @ x) * (up @ x)
            output[token] += probability[e] / divisor * (down @ activated)
    return output


class TestMoe:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize(("count", "top_k"), [(64, 8), (5, 1), (3, 3), (130, 2)])
    def test_equals_float64(
        self, kernels: Kernels, dtype: torch.dtype, norm: bool, count: int, top_k: int
    ) -> None:
        hidden, logits = torch.randn(5, 24).to(dtype), torch.randn(5, count).to(dtype)
        weights = experts(count, 24, 10, dtype)
        output = kernels.moe(hidden, logits, weights, top_k, norm)
        assert_near(output, moe_in_float64(hidden, logits, weights, top_k, norm))

    def test_equals_the_torch_reference(self, kernels: Kernels) -> None:
        hidden, logits = torch.randn(9, 24), torch.randn(9, 7)
        weights = experts(7, 24, 10, torch.float32)
        expected = moe_reference(hidden, logits, *weights, 7, 4, 0)
        torch.testing.assert_close(
            kernels.moe(hidden, logits, weights, 4, False), expected, rtol=0, atol=1e-6
        )

    def test_ties_go_to_the_lower_index(self, kernels: Kernels) -> None:
        hidden, logits = torch.randn(2, 8), torch.tensor([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
        weights = experts(4, 8, 6, torch.float32)
        expected = moe_in_float64(hidden, logits, weights, 2, False)
        assert_near(kernels.moe(hidden, logits, weights, 2, False), expected)

    def test_idle_experts_are_not_read(self, kernels: Kernels) -> None:
        hidden, logits = torch.randn(3, 8), torch.tensor([[5.0, 4.0, -9.0]] * 3)
        weights = experts(3, 8, 6, torch.float32)
        for kind in weights:
            kind[2].fill_(math.nan)
        assert bool(kernels.moe(hidden, logits, weights, 2, True).isfinite().all())

    def test_nan_logits_spoil_their_token_only(self, kernels: Kernels) -> None:
        hidden, logits = torch.randn(3, 8), torch.randn(3, 4)
        logits[1] = math.nan
        output = kernels.moe(hidden, logits, experts(4, 8, 6, torch.float32), 2, True)
        assert output.isnan().all(dim=1).tolist() == [False, True, False]

    def test_infinite_logits(self, kernels: Kernels) -> None:
        hidden, logits = torch.randn(1, 8), torch.tensor([[-math.inf, 1.0, -math.inf, 2.0]])
        weights = experts(4, 8, 6, torch.float32)
        assert_near(
            kernels.moe(hidden, logits, weights, 3, True), moe_in_float64(hidden, logits, weights, 3, True)
        )

    def test_no_tokens(self, kernels: Kernels) -> None:
        output = kernels.moe(torch.empty(0, 8), torch.empty(0, 4), experts(4, 8, 6, torch.float32), 2, True)
        assert output.shape == (0, 8)

    def test_top_k_is_refused(self, kernels: Kernels) -> None:
        with pytest.raises(KernelError, match=r"invalid argument: moe: top_k is 3, expected 1 .. 2"):
            kernels.moe(torch.randn(1, 8), torch.randn(1, 2), experts(2, 8, 6, torch.float32), 3, True)
