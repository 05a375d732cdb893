"""GPTQ and the factor it needs, against the formulas of the paper, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from q2export.contracts.quantization import Scheme
from q2export.errors import CalibrationError
from q2export.exporter.checkpoint.pack import Float32Array, QuantizedRows
from q2export.exporter.quantization.calibrated.gptq import PANEL, gptq
from q2export.exporter.quantization.calibrated.hessian import DAMPING, inverse_factor, second_moments
from q2export.exporter.quantization.round_to_nearest import nearest_codes, round_to_nearest
from q2export.exporter.quantization.search import search_parameters

SCHEMES = [Scheme(4, 32, True), Scheme(4, 64, False), Scheme(8, 128, True), Scheme(4, 128, True)]
BY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def correlated(tokens: int, size: int, seed: int = 0) -> Float32Array:
    """Inputs of a few strong directions and some noise."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size // 4, size), dtype=np.float32)
    x = rng.standard_normal((tokens, size // 4), dtype=np.float32) @ mixing
    return x / 4 + rng.standard_normal((tokens, size), dtype=np.float32) / 2


def factor_of(x: Float32Array, damping: float = DAMPING) -> Float32Array:
    moments, _ = second_moments([torch.from_numpy(x)], x.shape[1])
    return inverse_factor(moments, damping)


def gptq_column_by_column(rows: Float32Array, hessian: np.ndarray, scheme: Scheme) -> Float32Array:
    """Equation 2 of the paper, columns in order: the inverse of what is left, anew for each column."""
    left, result = rows.astype(np.float64), np.empty_like(rows)
    for column in range(rows.shape[1]):
        if column % scheme.block_size == 0:
            block = left[:, column : column + scheme.block_size].T.astype(np.float32)
            chosen = search_parameters(np.ascontiguousarray(block), scheme)
            points = scheme.default_zero_point if chosen.zero_points is None else chosen.zero_points
        codes = nearest_codes(left[:, column][None].astype(np.float32), chosen, scheme)[0]
        result[:, column] = (codes.astype(np.float32) - points) * chosen.scales
        inverse = np.linalg.inv(hessian[column:, column:])
        lost = left[:, column] - result[:, column]
        left[:, column:] -= np.outer(lost / inverse[0, 0], inverse[0])
    return result


def output_error(rows: Float32Array, found: QuantizedRows, scheme: Scheme, x: Float32Array) -> float:
    return float((((rows - found.dequantized(scheme)) @ x.T) ** 2).sum())


@BY_SCHEME
def test_it_does_what_the_paper_says(scheme: Scheme) -> None:
    size = 256
    x = correlated(600, size)
    rows = np.random.default_rng(1).standard_normal((5, size), dtype=np.float32)
    hessian = x.T.astype(np.float64) @ x
    hessian += DAMPING * hessian.diagonal().mean() * np.eye(size)
    expected = gptq_column_by_column(rows, hessian, scheme)
    found = gptq(rows, factor_of(x), scheme)
    values = found.dequantized(scheme)
    # Rounding of float32 may move a value across the middle between two codes, and then those after it.
    assert np.mean(np.isclose(values, expected, rtol=1e-3, atol=1e-5)) > 0.97
    ours, reference = (np.sum(((rows - one) @ x.T) ** 2) for one in (values, expected))
    assert ours == pytest.approx(reference, rel=0.02)


@BY_SCHEME
@pytest.mark.parametrize("size", [128, 384])
def test_the_output_is_closer_than_with_rounding_to_nearest(scheme: Scheme, size: int) -> None:
    x = correlated(2 * size, size)
    rows = np.random.default_rng(2).standard_normal((16, size), dtype=np.float32)
    calibrated = output_error(rows, gptq(rows, factor_of(x), scheme), scheme, x)
    nearest = output_error(rows, round_to_nearest(rows, scheme), scheme, x)
    assert calibrated < 0.6 * nearest


@BY_SCHEME
def test_uncorrelated_inputs_give_rounding_to_nearest(scheme: Scheme) -> None:
    rows = np.random.default_rng(3).standard_normal((7, 256), dtype=np.float32)
    found, expected = (
        gptq(rows, np.diag(np.full(256, 0.3, np.float32)), scheme),
        round_to_nearest(rows, scheme),
    )
    assert np.array_equal(found.codes, expected.codes) and np.array_equal(found.scales, expected.scales)
    if expected.zero_points is not None:
        assert np.array_equal(found.zero_points, expected.zero_points)


def test_a_last_panel_that_is_shorter_is_rounded_like_the_others() -> None:
    scheme, size = Scheme(4, 32, True), PANEL + 32
    x = correlated(500, size)
    rows = np.random.default_rng(4).standard_normal((9, size), dtype=np.float32)
    found = gptq(rows, factor_of(x), scheme)
    assert found.codes.shape == (9, size) and found.scales.shape == (9, size // 32)
    assert output_error(rows, found, scheme, x) < 0.6 * output_error(
        rows, round_to_nearest(rows, scheme), scheme, x
    )


def test_the_factor_is_that_of_the_inverse() -> None:
    x = correlated(400, 96)
    hessian = x.T.astype(np.float64) @ x
    hessian += 0.3 * hessian.diagonal().mean() * np.eye(96)
    factor = factor_of(x, damping=0.3).astype(np.float64)
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(factor.T @ factor @ hessian, np.eye(96), atol=1e-4)


def test_inputs_that_are_always_zero_leave_their_columns_alone() -> None:
    """As those do that padding adds: the columns are rounded to nearest, and no error goes there."""
    x = correlated(400, 128)
    x[:, 40:64] = 0
    scheme = Scheme(4, 32, True)
    rows = np.random.default_rng(5).standard_normal((6, 128), dtype=np.float32)
    rows[:, 50:64] = 0
    found = gptq(rows, factor_of(x), scheme)
    assert not found.dequantized(scheme)[:, 50:64].any()
    values, scales = found.dequantized(scheme)[:, 40:50], found.scales[:, 1, None]
    inside = np.abs(rows[:, 40:50]) < 7 * np.abs(scales)
    assert (np.abs(values - rows[:, 40:50]) <= np.abs(scales) / 2 * 1.001)[inside].all()
    assert np.isfinite(factor_of(np.zeros((10, 32), np.float32))).all()


def test_a_singular_matrix_is_damped_until_it_is_not() -> None:
    x = np.repeat(np.random.default_rng(6).standard_normal((50, 1), dtype=np.float32), 64, axis=1)
    assert np.isfinite(factor_of(x, damping=1e-9)).all()


def test_moments_that_overflow_are_refused() -> None:
    with pytest.raises(CalibrationError, match="overflows float32"):
        factor_of(np.full((4, 32), 1e30, np.float32))


def test_moments_are_those_of_all_parts() -> None:
    x = correlated(70, 16)
    moments, tokens = second_moments((torch.from_numpy(part) for part in (x[:30], x[30:31], x[31:])), 16)
    assert tokens == 70
    np.testing.assert_allclose(moments.numpy(), x.T @ x, rtol=1e-4, atol=1e-3)
