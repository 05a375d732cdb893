"""Linear layers over weights in place, against float64."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.plugins.cpu.kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CpuKernels,
    Floats,
    KernelError,
    at_odd_address,
    stored,
    widened,
)

SHAPES = [(1, 1), (7, 3), (33, 70), (64, 5), (896, 37), (1030, 66), (2500, 130)]
"""in_features and out_features: less than a vector, no multiple of one, of a block, of a tile."""

ROUNDED = 2
"""``activations`` of the kernels: the input is rounded to bfloat16."""

DTYPES = pytest.mark.parametrize(
    "dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=["float32", "float16", "bfloat16"]
)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


@DTYPES
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_equals_float64(kernels: CpuKernels, inputs: int, outputs: int, dtype: int) -> None:
    x, weight = random(19, inputs), stored(random(outputs, inputs), dtype)
    bias = stored(random(outputs), dtype)
    wide = widened(weight, dtype).astype(np.float64)
    expected = x.astype(np.float64) @ wide.T + widened(bias, dtype)
    found = kernels.linear(x, at_odd_address(weight), outputs, dtype, bias, dtype)
    bound = np.abs(x.astype(np.float64)) @ np.abs(wide.T) + 1
    assert (np.abs(found - expected) <= 2e-6 * bound).all()


@DTYPES
@pytest.mark.parametrize(("inputs", "outputs"), [(70, 9), (1030, 66)])
def test_a_row_does_not_depend_on_its_neighbours(
    kernels: CpuKernels, inputs: int, outputs: int, dtype: int
) -> None:
    """Of a prompt of 250 tokens, rows computed alone and in batches have the same bits."""
    x, weight = random(250, inputs), stored(random(outputs, inputs), dtype)
    whole = kernels.linear(x, weight, outputs, dtype)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 24, 25, 64):
        found = kernels.linear(x[100 : 100 + rows], weight, outputs, dtype)
        np.testing.assert_array_equal(found, whole[100 : 100 + rows], err_msg=f"{rows} rows")


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_rounds_the_input_to_bfloat16(kernels: CpuKernels, inputs: int, outputs: int) -> None:
    """Against float64 over the rounded input: nothing else is rounded but the sums."""
    x, weight = random(19, inputs), stored(random(outputs, inputs), BFLOAT16)
    bias = random(outputs)
    rounded = widened(stored(x, BFLOAT16), BFLOAT16).astype(np.float64).reshape(x.shape)
    wide = widened(weight, BFLOAT16).astype(np.float64).reshape(outputs, inputs)
    expected = rounded @ wide.T + bias
    for rows in (19, 1):
        found = kernels.linear(x[:rows], at_odd_address(weight), outputs, BFLOAT16, bias, FLOAT32, ROUNDED)
        bound = np.abs(rounded[:rows]) @ np.abs(wide.T) + 1
        assert (np.abs(found - expected[:rows]) <= 2e-6 * bound).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(70, 9), (1030, 66)])
def test_a_rounded_row_does_not_depend_on_its_neighbours(
    kernels: CpuKernels, inputs: int, outputs: int
) -> None:
    x, weight = random(250, inputs), stored(random(outputs, inputs), BFLOAT16)
    whole = kernels.linear(x, weight, outputs, BFLOAT16, activations=ROUNDED)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 24, 25, 64):
        found = kernels.linear(x[100 : 100 + rows], weight, outputs, BFLOAT16, activations=ROUNDED)
        np.testing.assert_array_equal(found, whole[100 : 100 + rows], err_msg=f"{rows} rows")


def test_rounding_is_to_the_nearest_and_ties_to_even(kernels: CpuKernels) -> None:
    """Between 1 and its successors of 8 bits; what is infinite or no number stays so."""
    x = np.float32([1 + 1 / 256, 1 + 3 / 256, 1 + 1.01 / 256, -1 - 1 / 256, 3.4e38, np.inf, np.nan])
    expected = np.float32([1, 1 + 4 / 256, 1 + 2 / 256, -1, np.inf, np.inf, np.nan])
    one = stored(np.ones((1, 1), np.float32), BFLOAT16)
    found = kernels.linear(x[:, None], one, 1, BFLOAT16, activations=ROUNDED)
    np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_every_weight_is_widened_exactly(kernels: CpuKernels, dtype: int) -> None:
    """All 65,536 patterns: subnormal, infinite, NaN. One input feature, so that an output is a weight."""
    patterns = np.arange(65536, dtype=np.uint16)
    weight = patterns.view(np.float16) if dtype == FLOAT16 else patterns
    with np.errstate(invalid="ignore"):
        expected = widened(weight, dtype)
    for rows in (1, 9):
        found = kernels.linear(np.ones((rows, 1), np.float32), weight, 65536, dtype)
        np.testing.assert_array_equal(found, np.tile(expected, (rows, 1)))


def test_no_rows(kernels: CpuKernels) -> None:
    """Of an empty tensor there is no address: a step that only fills the cache asks for no logits."""
    kernels.linear_without_rows(random(300, 200))


def test_tasks_may_run_in_any_order(kernels: CpuKernels) -> None:
    """Every task once, the last first: the same bits."""
    x, weight = random(700, 40), random(300, 40)
    expected = kernels.linear(x, weight, 300, FLOAT32)
    output = np.full_like(expected, np.nan)
    counts = []

    def run(_: int, task: ctypes._FuncPointer, data: int, count: int) -> None:
        counts.append(count)
        for index in reversed(range(count)):
            task(data, index)

    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
    run_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, task_type, ctypes.c_void_p, ctypes.c_size_t)
    kernels.linear_into(output, x, weight, run_type(run))
    np.testing.assert_array_equal(output, expected)
    assert counts
    assert counts[0] > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "linear: rows is -1, expected 0 .. 2147483647"),
        ({"in_features": 0}, "linear: in_features is 0, expected 1 .. 2147483647"),
        ({"out_features": 1 << 40}, "linear: out_features is 1099511627776"),
        ({"weight_dtype": 3}, "linear: weight_dtype is 3, expected 0 .. 2"),
        ({"rows": 1 << 30, "in_features": 1 << 30}, "linear: input has 1.15e\\+18 elements"),
        ({"weight": None}, "linear: weight is a null pointer"),
        ({"activations": 1}, "linear: activations is 1, expected float32 \\(0\\) or bfloat16 \\(2\\)"),
        (
            {"activations": 2},
            "linear: activations of bfloat16 need weights of bfloat16 \\(2\\), weight_dtype is 0",
        ),
    ],
)
def test_refuses(kernels: CpuKernels, change: dict[str, int | None], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        kernels.refused_linear(change)
