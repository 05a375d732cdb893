"""Rotary embedding, alone and on the way into the cache, on the host: against float64, and bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.plugins.kernels import Kernels
from tests.plugins.test_csrc_kernels import DTYPES, assert_near, frequencies

FACTOR = 1.1386294  # of YaRN with factor 4

INTEGERS = {2: torch.int16, 4: torch.int32}


def misaligned_copy(tensor: Tensor) -> Tensor:
    """One that begins an element behind a multiple of 16 bytes."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


class Misaligned(Kernels):
    """The first three tensors are misaligned: x and its positions, or query, key and value."""

    def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [*map(misaligned_copy, tensors[:3]), *super().moved(tensors[3:])]


@pytest.fixture(scope="module")
def misaligned(host_kernels: Path) -> Kernels:
    return Misaligned(host_kernels)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits, NaN included."""
    return torch.equal(a.view(INTEGERS[a.element_size()]), b.view(INTEGERS[b.element_size()]))


def rotated_in_float64(x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float) -> Tensor:
    """Channels i and i + head_dim / 2 of x [batch, sequence, heads, head_dim] as a complex number, turned."""
    # The angle is rounded to float32, as the specification says; everything after it is exact here.
    angle = (positions.to(torch.float32)[:, :, None, None] * inv_freq).to(torch.float64)
    first, second = x.to(torch.float64).chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.full_like(angle, factor), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def cosines_and_sines(kernels: Kernels, angles: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's cos and sin of the angles: it turns (1, 0) at position 1."""
    x = torch.zeros(1, 1, 1, 2 * len(angles))
    x[..., : len(angles)] = 1.0
    y = kernels.rotary_embedding(x, torch.ones(1, 1, dtype=torch.int64), angles, 1.0)
    return tuple(y.flatten().chunk(2))


def assert_exact(kernels: Kernels, angles: Tensor) -> None:
    """Cos and sin of the float32 angle are right to 8e-8; floats below 1 are 6e-8 apart."""
    cosine, sine = cosines_and_sines(kernels, angles)
    wide = angles.to(torch.float64)
    assert (cosine - wide.cos()).abs().max().item() < 8e-8
    assert (sine - wide.sin()).abs().max().item() < 8e-8


class TestAngle:
    def test_every_position_to_131072(self, kernels: Kernels) -> None:
        assert_exact(kernels, torch.arange(131073, dtype=torch.float32))

    @pytest.mark.parametrize("limit", [0.01, 10.0, 1e3, 131072.0, 2.0**31])
    def test_random_angles(self, kernels: Kernels, limit: float) -> None:
        angles = (torch.rand(100_000) * 2 - 1) * limit
        assert_exact(kernels, angles[angles.abs() < 2.0**31])

    def test_angles_next_to_the_multiples_of_half_pi(self, kernels: Kernels) -> None:
        """Where cos or sin is nearly zero and the reduction cancels most."""
        multiples = (torch.arange(-90000, 90000, dtype=torch.float64) * (math.pi / 2)).to(torch.float32)
        below = torch.nextafter(multiples, torch.tensor(-math.inf))
        assert_exact(kernels, torch.cat((multiples, below)))

    def test_signs_and_zeros(self, kernels: Kernels) -> None:
        cosine, sine = cosines_and_sines(kernels, torch.tensor([0.0, 1.0, -1.0]))
        assert cosine[0] == 1.0 and sine[0] == 0.0
        assert cosine[1] == cosine[2] and sine[1] == -sine[2]

    @pytest.mark.parametrize("angle", [2.0**31, -(2.0**31), 1e30, math.inf, math.nan])
    def test_beyond_its_range_is_nan(self, kernels: Kernels, angle: float) -> None:
        cosine, sine = cosines_and_sines(kernels, torch.tensor([angle]))
        assert bool(cosine.isnan()) and bool(sine.isnan())


class TestRotaryEmbedding:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("head_dim", [2, 6, 24, 64, 128, 256, 512])
    def test_equals_float64(self, kernels: Kernels, dtype: torch.dtype, head_dim: int) -> None:
        x = torch.randn(2, 3, 7, head_dim).to(dtype)
        positions = torch.tensor([[0, 1, 2], [32767, 131071, 5]])
        y = kernels.rotary_embedding(x, positions, frequencies(head_dim), FACTOR)
        expected = rotated_in_float64(x, positions, frequencies(head_dim), FACTOR)
        assert_near(y, expected, roundings=0.51)  # half a unit in the last place

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("heads", [1, 5, 80])
    def test_alignment_changes_no_bit(
        self, kernels: Kernels, misaligned: Kernels, dtype: torch.dtype, heads: int
    ) -> None:
        x = torch.randn(1, 3, heads, 128).to(dtype)
        arguments = (x, torch.tensor([[0, 77, 131071]]), frequencies(128), FACTOR)
        assert equal_bits(kernels.rotary_embedding(*arguments), misaligned.rotary_embedding(*arguments))

    @pytest.mark.parametrize("head_dim", [6, 64])
    def test_in_place(self, kernels: Kernels, head_dim: int) -> None:
        x = torch.randn(2, 3, 5, head_dim).to(torch.bfloat16)
        positions = torch.arange(6).view(2, 3)
        expected = kernels.rotary_embedding(x, positions, frequencies(head_dim), FACTOR)
        assert equal_bits(
            kernels.rotary_embedding(x, positions, frequencies(head_dim), FACTOR, in_place=True), expected
        )

    def test_negative_positions_turn_back(self, kernels: Kernels) -> None:
        x = torch.randn(1, 1, 2, 64)
        there = kernels.rotary_embedding(x, torch.tensor([[1000]]), frequencies(64), 1.0)
        back = kernels.rotary_embedding(there, torch.tensor([[-1000]]), frequencies(64), 1.0)
        assert_near(back, x.to(torch.float64))


def ragged(heads: int, kv_heads: int, head_dim: int, sequence: int, dtype: torch.dtype) -> list[Tensor]:
    """A fresh prompt, a chunk that ends at the cache's last position, one token, an idle row, no room."""
    capacity = 40
    past_lengths = torch.tensor([0, capacity - sequence, 7, 3, capacity])
    query_lengths = torch.tensor([sequence, sequence, 1, 0, sequence])
    new = [torch.randn(5, sequence, count, head_dim).to(dtype) for count in (heads, kv_heads, kv_heads)]
    past = [torch.full((5, kv_heads, capacity, head_dim), math.nan, dtype=dtype) for _ in range(2)]
    for row, length in enumerate(past_lengths.tolist()):
        for cache in past:
            cache[row, :, :length] = torch.randn(kv_heads, length, head_dim).to(dtype)
    return [*new, *past, past_lengths, query_lengths]


class TestAppend:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("heads", "kv_heads", "head_dim", "sequence"),
        [
            (14, 2, 64, 1),
            (7, 1, 128, 5),
            (3, 3, 6, 3),
            (2, 1, 256, 2),
            (3, 1, 24, 2),
            (80, 1, 64, 2),
            (2, 1, 64, 20),
        ],
    )
    @pytest.mark.parametrize("rotates", [True, False])
    def test_cache_bit_for_bit(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        heads: int,
        kv_heads: int,
        head_dim: int,
        sequence: int,
        rotates: bool,
    ) -> None:
        tensors = ragged(heads, kv_heads, head_dim, sequence, dtype)
        _, key, value, past_key, past_value, past_lengths, query_lengths = tensors
        rotation = (frequencies(head_dim), FACTOR) if rotates else None
        _, present_key, present_value = kernels.attention(tensors, 1, rotation, scale=0.1)
        if rotates:
            positions = past_lengths[:, None] + torch.arange(sequence)
            key = kernels.rotary_embedding(key, positions, frequencies(head_dim), FACTOR)
        for row, (past, length) in enumerate(zip(past_lengths.tolist(), query_lengths.tolist(), strict=True)):
            length = min(length, past_key.shape[2] - past)
            past_key[row, :, past : past + length] = key[row, :length].transpose(0, 1)
            past_value[row, :, past : past + length] = value[row, :length].transpose(0, 1)
        assert equal_bits(present_key, past_key)
        assert equal_bits(present_value, past_value)

    @pytest.mark.parametrize("head_dim", [64, 20])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_alignment_changes_no_bit_of_the_cache(
        self, kernels: Kernels, misaligned: Kernels, dtype: torch.dtype, head_dim: int
    ) -> None:
        tensors = ragged(6, 2, head_dim, 3, dtype)
        rotation = (frequencies(head_dim), FACTOR)
        _, *expected = kernels.attention(tensors, 1, rotation, scale=0.1)
        _, *present = misaligned.attention(tensors, 1, rotation, scale=0.1)
        assert all(equal_bits(ours, theirs) for ours, theirs in zip(present, expected, strict=True))

    def test_far_positions(self, kernels: Kernels) -> None:
        """The last tokens of a cache of 131,072 positions; a window of one token shows each its own value."""
        past, sequence = 131072 - 3, 3
        new = [torch.randn(1, sequence, 2, 64).to(torch.float16) for _ in range(3)]
        cache = [torch.zeros(1, 2, 131072, 64, dtype=torch.float16) for _ in range(2)]
        lengths = [torch.tensor([past]), torch.tensor([sequence])]
        rotation = (frequencies(64), 1.0)
        output, present_key, _ = kernels.attention([*new, *cache, *lengths], 1, rotation, scale=0.125)
        positions = past + torch.arange(sequence)[None]
        expected = rotated_in_float64(new[1], positions, frequencies(64), 1.0)
        assert_near(present_key[:, :, past:].transpose(1, 2), expected, roundings=0.51)
        assert torch.equal(output, new[2])
