"""Prefill attention on a GPU, each tile of it, also those that the plan does not choose.

``PrefillTile::kHopper`` is used by no plan until these tests have passed on a Hopper GPU: then set
``kHopperTileIsTested`` in ``attention/prefill_heuristics.h``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gpu.compiling import probes_for_gpu
from tests.plugins.prefill_probes import HOPPER, NAMES, TILES, Batch, Prefill
from tests.plugins.test_prefill_kernels import EPSILON, TYPES, TestAttention, TestRefusals

__all__ = ["TestAttention", "TestRefusals"]


class GpuPrefill(Prefill):
    """Skips the test where the GPU has not the instructions of a tile."""

    def __call__(
        self, batch: Batch, tile: int, window: int = 0, scale: float | None = None, section: int = 0
    ) -> Tensor:
        if tile == HOPPER and torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("needs a Hopper GPU")
        return super().__call__(batch, tile, window, scale, section)


@pytest.fixture(scope="module")
def prefill() -> Prefill:
    return GpuPrefill(probes_for_gpu("prefill"), "cuda")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tile", TILES, ids=NAMES)
@pytest.mark.parametrize("window", [0, 700])
def test_long(prefill: Prefill, dtype: torch.dtype, head_dim: int, tile: int, window: int) -> None:
    """A prompt and a chunk on a past, with every multiprocessor at work: what the host cannot show."""
    batch = Batch.random(dtype, head_dim, (14, 2), past=[0, 2000], fresh=[1900, 777])
    output = prefill(batch, tile, window).to(torch.float64)
    for row in range(2):
        cuda = Batch(
            *(x[row : row + 1].cuda() for x in (batch.query, batch.key, batch.value)),
            [batch.past[row]],
            [batch.fresh[row]],
        )
        expected, theirs = (
            cuda.attention(kind, window, head_dim**-0.5).cpu().to(torch.float64)[0]
            for kind in (torch.float64, dtype)
        )
        rounding = EPSILON[dtype] * max(1.0, expected.abs().max().item())
        bound = max(rounding, 2 * (theirs - expected).abs().max().item())
        assert (output[row] - expected).abs().max().item() <= bound


@pytest.mark.parametrize("tile", TILES, ids=NAMES)
def test_two_runs_have_the_same_bits(prefill: Prefill, tile: int) -> None:
    batch = Batch.random(torch.bfloat16, 128, (28, 4), past=[300], fresh=[1500])
    expected = prefill(batch, tile)
    assert all(torch.equal(prefill(batch, tile), expected) for _ in range(10))
