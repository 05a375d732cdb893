"""Words of GPTQ and AWQ: some packed by hand, others element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.exporter.quantization.published.packing import AwqPacking, GptqPacking
from tests.exporter.quantization.published.checkpoints import awq_words, gptq_words


def words(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint32)


def test_a_gptq_word_by_hand() -> None:
    """Inputs 0 to 7 of output 0 have codes 0 to 7, those of output 1 codes 15 down to 8."""
    packing = GptqPacking(4, 1)
    assert packing.codes(words([0x76543210, 0x89ABCDEF])).tolist() == [
        [0x10, 0x32, 0x54, 0x76],
        [0xEF, 0xCD, 0xAB, 0x89],
    ]
    assert packing.zero_points(words([0x77654321])).tolist() == [[1, 2, 3, 4, 5, 6, 7, 7]]
    assert packing.zero_point_offset == 1


def test_an_eight_bit_gptq_word_by_hand() -> None:
    packing = GptqPacking(8, 0)
    assert packing.codes(words([0xFF800100], [0x04030201])).tolist() == [[0, 1, 0x80, 0xFF, 1, 2, 3, 4]]
    assert packing.zero_points(words([0x7F80FF00], [1])).tolist() == [[0, 0xFF, 0x80, 0x7F], [1, 0, 0, 0]]


def test_an_awq_word_by_hand() -> None:
    """Outputs 0 to 7 have codes 0 to 7: nibbles 0 2 4 6 1 3 5 7 from the lowest on; then codes 8 to 15."""
    packing = AwqPacking()
    assert packing.zero_points(words([0x75316420])).tolist() == [list(range(8))]
    # Two inputs; their codes of one output make one byte, input 0 in the low nibble.
    assert packing.codes(words([0x75316420], [0xFDB9ECA8])).tolist() == [
        [0x80], [0x91], [0xA2], [0xB3], [0xC4], [0xD5], [0xE6], [0xF7],
    ]  # fmt: skip


@given(
    bits=st.sampled_from([4, 8]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1 << 32),
)
def test_gptq_codes_and_zero_points(bits: int, sizes: tuple[int, int], seed: int) -> None:
    inputs, outputs = 8 * sizes[0], 8 * sizes[1]
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (inputs, outputs))
    packing = GptqPacking(bits, 0)
    assert packing.fits((outputs, inputs))
    packed = gptq_words(codes, bits)
    assert packed.shape == packing.qweight_shape((outputs, inputs))
    ours = packing.codes(packed.view(np.uint32))
    for i, o in np.ndindex(inputs, outputs):
        found = ours[o, i] if bits == 8 else ours[o, i // 2] >> 4 * (i % 2) & 15
        assert found == codes[i, o]
    qzeros = np.ascontiguousarray(gptq_words(codes, bits).T)  # the same codes as zero points [groups, out]
    assert qzeros.shape == packing.qzeros_shape(inputs, outputs)
    assert np.array_equal(packing.zero_points(qzeros.view(np.uint32)), codes.T)


@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 5)), seed=st.integers(0, 1 << 32))
def test_awq_codes_and_zero_points(sizes: tuple[int, int], seed: int) -> None:
    inputs, outputs = 2 * sizes[0], 8 * sizes[1]
    codes = np.random.default_rng(seed).integers(0, 16, (inputs, outputs))
    packing = AwqPacking()
    packed = awq_words(codes)
    assert packed.shape == packing.qweight_shape((outputs, inputs)) == packing.qzeros_shape(outputs, inputs)
    ours = packing.codes(packed.view(np.uint32))
    assert ours.shape == (outputs, inputs // 2)
    for i, o in np.ndindex(inputs, outputs):
        assert ours[o, i // 2] >> 4 * (i % 2) & 15 == codes[i, o]
    assert np.array_equal(packing.zero_points(packed.view(np.uint32)), codes)


@pytest.mark.parametrize(
    ("packing", "shape", "fits"),
    [
        (GptqPacking(4, 1), (8, 32), True),
        (GptqPacking(4, 1), (12, 32), False),
        (GptqPacking(8, 1), (12, 36), True),
        (GptqPacking(8, 1), (12, 34), False),
        (AwqPacking(), (8, 34), True),
        (AwqPacking(), (12, 32), False),
    ],
)
def test_what_fills_whole_words(
    packing: GptqPacking | AwqPacking, shape: tuple[int, int], fits: bool
) -> None:
    assert packing.fits(shape) is fits
