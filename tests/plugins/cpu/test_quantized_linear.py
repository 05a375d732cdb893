"""Linear layers over packed weights, against float64."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest

from tests.plugins.cpu.kernels import CpuKernels, Floats, KernelError, Packed, QuantizedLinearDesc, address

BITS = pytest.mark.parametrize("bits", [4, 8])
BLOCK_SIZES = pytest.mark.parametrize("block_size", [32, 64, 128])
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero_points"])


def random(*shape: int) -> Floats:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def rounded(x: Floats, block_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What ``x [rows, in]`` is after rounding each block to int8."""
    blocks = x.reshape(x.shape[0], -1, block_size)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, 0).astype(np.float32)
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.rint(blocks * inverse) * scale.astype(
        np.float64
    )
    return values.reshape(x.shape)


@BITS
@BLOCK_SIZES
@SYMMETRIC
@pytest.mark.parametrize(("blocks", "outputs"), [(1, 3), (3, 70), (9, 37)])
def test_equals_float64(
    kernels: CpuKernels,
    bits: int,
    block_size: int,
    symmetric: bool,
    blocks: int,
    outputs: int,
) -> None:
    """Fewer blocks than a vector spans, and one more; fewer outputs than a tile has, and more."""
    weight = Packed.random((outputs, blocks * block_size), bits, block_size, symmetric)
    x, bias = random(11, blocks * block_size), random(outputs)
    x[0, :block_size] = 0
    for int8, values in ((False, x.astype(np.float64)), (True, rounded(x, block_size))):
        expected = values @ weight.values.T + bias
        bound = np.abs(values) @ np.abs(weight.values.T) + 1
        for rows in (1, 4, 11):
            found = kernels.quantized_linear(x[:rows], weight, int8, bias)
            assert (np.abs(found - expected[:rows]) <= 3e-6 * bound[:rows]).all(), (int8, rows)


@BITS
@BLOCK_SIZES
@SYMMETRIC
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_row_does_not_depend_on_its_neighbours(
    kernels: CpuKernels, bits: int, block_size: int, symmetric: bool, int8: bool
) -> None:
    weight = Packed.random((67, 37 * block_size), bits, block_size, symmetric)
    x, bias = random(70, 37 * block_size), random(67)
    whole = kernels.quantized_linear(x, weight, int8, bias)
    for rows in (1, 2, 3, 4, 5, 8, 13, 30):
        found = kernels.quantized_linear(x[20 : 20 + rows], weight, int8, bias)
        np.testing.assert_array_equal(found, whole[20 : 20 + rows], err_msg=f"{rows} rows")


@BITS
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_rounded_away(
    kernels: CpuKernels, bits: int, rows: int, value: float
) -> None:
    """The row is NaN as a whole, the others are what they were."""
    weight = Packed.random((37, 128), bits, 32)
    x = random(rows, 128)
    good = kernels.quantized_linear(x, weight, True)
    x[rows // 2, 40] = value
    found = kernels.quantized_linear(x, weight, True)
    assert np.isnan(found[rows // 2]).all()
    others = np.arange(rows) != rows // 2
    np.testing.assert_array_equal(found[others], good[others])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bits", 5, "bits is 5, expected a multiple of 4"),
        ("block_size", 96, "block_size is 96, expected 32, 64 or 128"),
        ("in_features", 33, "in_features is 33, expected a multiple of 32"),
        ("activations", 2, "activations is 2, expected 0 .. 1"),
    ],
)
def test_refuses(kernels: CpuKernels, field: str, value: int, message: str) -> None:
    desc = QuantizedLinearDesc(1, 64, 1, 4, 32, 0, 1)
    setattr(desc, field, value)
    ones = address(np.ones(64, np.float32))
    with pytest.raises(KernelError, match=f"quantized_linear: {message}"):
        kernels.check(
            kernels.library.q2export_cpu_quantized_linear(
                byref(desc), ones, ones, ones, None, None, ones, None
            )
        )
