"""Mixture of experts over packed weights, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.cpu.kernels import CpuKernels, Floats, KernelError, PackedExperts
from tests.plugins.cpu.test_quantized_linear import rounded

BITS = pytest.mark.parametrize("bits", [4, 8])


def random(*shape: int) -> Floats:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def expected(
    hidden: Floats, logits: Floats, experts: PackedExperts, top_k: int, norm: bool, int8: bool
) -> NDArray[np.float64]:
    """Token by token, expert by expert."""
    output = np.zeros(hidden.shape)
    block_size = experts.down.block_size
    inputs = rounded(hidden, block_size) if int8 else hidden.astype(np.float64)
    probabilities = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    gate, up, down = experts.values()
    for token, x in enumerate(inputs):
        chosen = np.argsort(-logits[token], kind="stable")[:top_k]
        weights = probabilities[token, chosen] / (probabilities[token, chosen].sum() if norm else 1)
        for expert, weight in zip(chosen, weights, strict=True):
            gates = gate[expert] @ x
            inner = gates / (1 + np.exp(-gates)) * (up[expert] @ x)
            if int8:
                inner = rounded(inner[None].astype(np.float32), block_size)[0]
            output[token] += weight * (down[expert] @ inner)
    return output


@BITS
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero_points"])
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "block_size", "count", "top_k"),
    [(1, 64, 32, 32, 3, 1), (5, 128, 192, 64, 6, 6), (70, 96, 160, 32, 9, 4), (20, 128, 256, 128, 2, 2)],
)
def test_equals_float64(
    kernels: CpuKernels,
    tokens: int,
    hidden: int,
    inner: int,
    block_size: int,
    count: int,
    top_k: int,
    bits: int,
    symmetric: bool,
    norm: bool,
) -> None:
    """One row per expert and many, some experts idle."""
    experts = PackedExperts.random((count, hidden, inner), bits, block_size, symmetric)
    x, logits = random(tokens, hidden) / 8, random(tokens, count)
    logits[:, 0] = -9 if count > top_k else 0  # nobody's choice
    # Of int8, a value half way between two integers may be rounded the other way.
    for int8, bound in ((False, 1e-5), (True, 5e-3)):
        found = kernels.quantized_moe(x, logits, experts, top_k, norm, int8)
        wanted = expected(x, logits, experts, top_k, norm, int8)
        assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max(), int8


@BITS
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_token_does_not_depend_on_its_neighbours(kernels: CpuKernels, bits: int, int8: bool) -> None:
    experts = PackedExperts.random((9, 160, 96), bits, 32, symmetric=False)
    x, logits = random(150, 160), random(150, 9)
    whole = kernels.quantized_moe(x, logits, experts, 4, False, int8)
    for first, count in ((0, 1), (40, 2), (77, 16)):
        cut = slice(first, first + count)
        found = kernels.quantized_moe(x[cut], logits[cut], experts, 4, False, int8)
        np.testing.assert_array_equal(found, whole[cut])


def test_refuses(kernels: CpuKernels) -> None:
    experts = PackedExperts.random((3, 64, 32), 4, 32, symmetric=True)
    with pytest.raises(KernelError, match=r"quantized_moe: top_k is 4, expected 1 .. 3"):
        kernels.quantized_moe(random(2, 64), random(2, 3), experts, 4, False, True)
    with pytest.raises(KernelError, match=r"quantized_moe: hidden_size is 33, expected a multiple of 32"):
        kernels.quantized_moe(random(2, 33), random(2, 3), experts, 1, False, True)
