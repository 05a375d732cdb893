"""Mixture of experts over weights in place, against the reference of the torch op."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from q2export.exporter.graph.ops.moe import moe_reference
from tests.plugins.cpu.kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CpuKernels,
    Experts,
    Floats,
    KernelError,
    stored,
    widened,
)

DTYPES = pytest.mark.parametrize(
    "dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=["float32", "float16", "bfloat16"]
)


def random(*shape: int) -> Floats:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def experts_of(count: int, hidden: int, inner: int, dtype: int) -> Experts:
    def matrices(which: int, rows: int, columns: int) -> list[NDArray[np.generic]]:
        values = random(count, rows, columns + which)[..., :columns].copy() / np.float32(columns**0.5)
        return [stored(each, dtype) for each in values]

    gate, up, down = matrices(1, inner, hidden), matrices(2, inner, hidden), matrices(3, hidden, inner)
    return Experts(gate, up, down, dtype)


def expected(
    hidden: Floats, logits: Floats, experts: Experts, top_k: int, norm: bool, rounded: bool = False
) -> Floats:
    kind = torch.bfloat16 if rounded else torch.float32
    gate, up, down = (
        [torch.tensor(widened(each, experts.dtype)).to(kind) for each in matrix]
        for matrix in (experts.gate, experts.up, experts.down)
    )
    x, router_logits = torch.tensor(hidden), torch.tensor(logits)
    settings = (len(gate), top_k, int(norm), int(rounded))
    found: Floats = moe_reference(x, router_logits, gate, up, down, *settings).numpy()
    return found


@DTYPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "count", "top_k"), [(1, 7, 5, 3, 1), (5, 40, 24, 6, 6), (70, 33, 70, 14, 4)]
)
def test_equals_the_reference(
    kernels: CpuKernels, tokens: int, hidden: int, inner: int, count: int, top_k: int, norm: bool, dtype: int
) -> None:
    """Fewer tokens than experts, and more; every expert chosen, and some idle."""
    experts, x, logits = (
        experts_of(count, hidden, inner, dtype),
        random(tokens, hidden),
        random(tokens, count),
    )
    logits[:, 0] = -9 if count > top_k else 0  # nobody's choice
    found = kernels.moe(x, logits, experts, top_k, norm)
    np.testing.assert_allclose(found, expected(x, logits, experts, top_k, norm), atol=2e-5, rtol=1e-5)


def test_a_token_does_not_depend_on_its_neighbours(kernels: CpuKernels) -> None:
    experts, x, logits = experts_of(9, 100, 36, BFLOAT16), random(150, 100), random(150, 9)
    whole = kernels.moe(x, logits, experts, 4, False)
    for first, count in ((0, 1), (40, 2), (77, 16)):
        cut = slice(first, first + count)
        np.testing.assert_array_equal(kernels.moe(x[cut], logits[cut], experts, 4, False), whole[cut])


def test_activations_of_bfloat16(kernels: CpuKernels) -> None:
    """Those that down multiplies, too; some experts have rows enough for a panel of weights, some have few.

    A sum that is added in another order may be rounded to the other neighbour, which moves a result by less
    than half of what rounding itself does.
    """
    experts, x, logits = experts_of(6, 100, 71, BFLOAT16), random(300, 100), random(300, 6)
    logits[:, 3] -= 4
    found = kernels.moe(x, logits, experts, 2, True, BFLOAT16)
    rounded = expected(x, logits, experts, 2, True, rounded=True)
    exact = expected(x, logits, experts, 2, True)
    assert np.abs(exact - rounded).max() > 2e-3
    assert np.abs(found - rounded).max() < 5e-4
    assert np.abs(found - rounded).mean() < 2e-6
    for first, count in ((0, 1), (30, 13), (130, 150), (299, 1)):
        cut = slice(first, first + count)
        alone = kernels.moe(x[cut], logits[cut], experts, 2, True, BFLOAT16)
        np.testing.assert_array_equal(alone, found[cut])


def test_of_equal_logits_the_lower_experts_are_chosen(kernels: CpuKernels) -> None:
    experts, x = experts_of(5, 8, 8, FLOAT32), random(2, 8)
    logits = np.array([[0, 1, 0, 1, 1], [2, 2, 2, 2, 2]], np.float32)
    found = kernels.moe(x, logits, experts, 2, True)
    sure = np.array([[0, 50, 0, 50, 0], [50, 50, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(found, kernels.moe(x, sure, experts, 2, True), atol=1e-6)


def test_the_larger_logit_is_chosen_where_probabilities_are_equal(kernels: CpuKernels) -> None:
    experts, x = experts_of(3, 8, 8, FLOAT32), random(1, 8)
    logits = np.array([[1e-9, 2e-9, 0]], np.float32)
    found = kernels.moe(x, logits, experts, 1, True)
    sure = np.array([[0, 50, 0]], np.float32)
    np.testing.assert_allclose(found, kernels.moe(x, sure, experts, 1, True), atol=1e-6)


def test_logits_that_are_no_numbers_give_none(kernels: CpuKernels) -> None:
    """The token's output is NaN; the other token's is what it was."""
    experts, x, logits = experts_of(5, 8, 8, FLOAT32), random(2, 8), random(2, 5)
    good = kernels.moe(x, logits, experts, 2, True)
    for expert in range(5):
        bad = logits.copy()
        bad[1, expert] = np.nan
        found = kernels.moe(x, bad, experts, 2, True)
        assert np.isnan(found[1]).all()
        np.testing.assert_array_equal(found[0], good[0])


def test_gates_far_from_zero(kernels: CpuKernels) -> None:
    """Silu of values whose exponentials leave the range of float32 is finite, and right."""
    gates = np.array([-200, -89, -87, -20, 0, 20, 89, 200], np.float32)
    ones = np.ones((8, 1), np.float32)
    experts = Experts([gates.reshape(8, 1)], [ones], [np.eye(8, dtype=np.float32)[:1]], FLOAT32)
    for row in range(8):
        down = np.eye(8, dtype=np.float32)[row : row + 1]
        one = Experts(experts.gate, experts.up, [down], FLOAT32)
        (found,) = kernels.moe(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), one, 1, False)[0]
        wide = float(gates[row])
        assert abs(found - wide / (1 + np.exp(-wide))) <= 1e-6 * abs(wide)


def test_refuses(kernels: CpuKernels) -> None:
    experts, x, logits = experts_of(3, 8, 8, FLOAT32), random(2, 8), random(2, 3)
    with pytest.raises(KernelError, match=r"moe: top_k is 4, expected 1 .. 3"):
        kernels.moe(x, logits, experts, 4, False)
    with pytest.raises(KernelError, match=r"moe: activations of bfloat16 need weights of bfloat16 \(2\)"):
        kernels.moe(x, logits, experts, 2, False, BFLOAT16)
    with pytest.raises(KernelError, match=r"moe: activations is 1, expected float32 \(0\) or bfloat16 \(2\)"):
        kernels.moe(x, logits, experts, 2, False, 1)
