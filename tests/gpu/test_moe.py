"""Q2MoE on a GPU: the tests that the host passes, and each tile, also those that the plan does not choose.

The tile for Hopper and overlapping launches are used by no plan until these tests have passed on a Hopper
GPU: then set ``kHopperMoeIsTested`` and ``kOverlapIsTested`` in ``moe/heuristics.h``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from q2export.exporter.graph.ops.moe import moe_reference
from tests.gpu.compiling import probes_for_gpu
from tests.plugins.moe_probes import HOPPER, TILES, Plan, TileKernels, moe_in_float64
from tests.plugins.test_csrc_kernels import assert_near, experts
from tests.plugins.test_moe_kernels import NARROW, TestRouting, TestTokens

__all__ = ["TestRouting", "TestTokens"]


@pytest.fixture(scope="module")
def probes() -> Path:
    return probes_for_gpu("moe")


def _name(tile: int, overlaps: bool) -> str:
    return ("hopper" if tile == HOPPER else f"tile{tile}") + ("-overlapping" if overlaps else "")


VARIANTS = [(tile, overlaps) for tile in TILES for overlaps in (False, True)]


@pytest.fixture(params=VARIANTS, ids=[_name(*each) for each in VARIANTS])
def tile(request: pytest.FixtureRequest, probes: Path) -> TileKernels:
    index, overlaps = request.param
    if overlaps and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    if index == HOPPER and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    available = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    if Plan(probes).shared_bytes(index) > available:
        pytest.skip(f"needs more than {available} bytes of shared memory for a block")
    return TileKernels(probes, index, overlaps, "cuda")


def random_layer(
    tokens: int, num_experts: int, hidden: int, intermediate: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    weights = experts(num_experts, hidden, intermediate, dtype)
    return torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, num_experts).to(dtype), weights


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 65, 127, 128, 129, 700, 3000])
def test_tiles_equal_float64(tile: TileKernels, dtype: torch.dtype, tokens: int) -> None:
    """Every multiprocessor at work, and tiles of every fill: what the host cannot show."""
    hidden, logits, weights = random_layer(tokens, 16, 456, 264, dtype)
    logits += torch.linspace(1.0, -1.0, 16).to(dtype)  # unbalanced
    expected = moe_in_float64(hidden, logits, weights, 4, False)
    assert_near(tile.moe(hidden, logits, weights, 4, False), expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_errors_are_no_larger_than_those_of_torch(tile: TileKernels, dtype: torch.dtype) -> None:
    """At the sizes of Qwen1.5-MoE-A2.7B, with fewer experts."""
    hidden, logits, weights = random_layer(300, 8, 2048, 1408, dtype)
    expected = moe_in_float64(hidden, logits, weights, 4, True)
    of_torch = (moe_reference(hidden, logits, *weights, 8, 4, 1).to(torch.float64) - expected).norm()
    ours = (tile.moe(hidden, logits, weights, 4, True).to(torch.float64) - expected).norm()
    assert ours <= 1.25 * of_torch


def test_runs_have_the_same_bits(tile: TileKernels) -> None:
    hidden, logits, weights = random_layer(900, 12, 512, 384, torch.bfloat16)
    expected = tile.moe(hidden, logits, weights, 4, True)
    assert all(torch.equal(tile.moe(hidden, logits, weights, 4, True), expected) for _ in range(10))
