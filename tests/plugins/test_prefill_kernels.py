"""Prefill attention on tensor cores, on the host: both tiles, whatever the plan would be."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.host_cuda import sanitizers
from tests.host_cuda.compiling import RACES, SANITIZED, compile_for_host
from tests.host_cuda.gpus import A100, H200, Gpu, pretending
from tests.plugins.kernels import KernelError, Kernels
from tests.plugins.prefill_probes import KEYS, NAMES, SHORT, SOURCES, TILES, Batch, Prefill
from tests.plugins.test_csrc_kernels import attention_in_float64
from tests.plugins.test_decode_kernels import batch_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels")

TYPES = [torch.float16, torch.bfloat16]
EPSILON = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.fixture(scope="module")
def prefill() -> Prefill:
    return Prefill(compile_for_host("libprefill.so", sources=SOURCES))


def assert_near(actual: Tensor, batch: Batch, window: int = 0, scale: float | None = None) -> None:
    """Within one rounding of the largest value, or twice the error of plain PyTorch in the same type."""
    scale = batch.query.shape[-1] ** -0.5 if scale is None else scale
    expected = batch.attention(torch.float64, window, scale)
    theirs = batch.attention(actual.dtype, window, scale).to(torch.float64)
    error = (actual.to(torch.float64) - expected).abs().max().item()
    rounding = EPSILON[actual.dtype] * max(1.0, expected.abs().max().item())
    bound = max(rounding, 2 * (theirs - expected).abs().max().item())
    assert error <= bound, f"error {error}, bound {bound}"
    for row, fresh in enumerate(batch.fresh):
        assert bool((actual[row, fresh:] == 0).all()), f"padding of row {row} is not zero"


class TestAttention:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("heads", [(1, 1), (2, 2), (4, 2), (6, 1), (7, 1), (14, 2), (8, 1)])
    def test_groups(
        self, prefill: Prefill, dtype: torch.dtype, head_dim: int, tile: int, heads: tuple[int, int]
    ) -> None:
        batch = Batch.random(dtype, head_dim, heads, past=[0, 37], fresh=[21, 19])
        assert_near(prefill(batch, tile), batch)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("fresh", [17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
    def test_new_tokens_at_tile_borders(self, prefill: Prefill, tile: int, fresh: int) -> None:
        batch = Batch.random(torch.float16, 64, (1, 1), past=[0], fresh=[fresh], spare=0)
        assert_near(prefill(batch, tile), batch)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("past", [1, 46, 47, 48, 63, 64, 65, 127, 128, 129])
    def test_past_at_tile_borders(self, prefill: Prefill, tile: int, past: int) -> None:
        batch = Batch.random(torch.bfloat16, 64, (3, 1), past=[past], fresh=[17], spare=0)
        assert_near(prefill(batch, tile), batch)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    def test_ragged(self, prefill: Prefill, tile: int) -> None:
        """A prompt, a chunk on a past, one token, nothing, and nothing on nothing."""
        batch = Batch.random(torch.float16, 128, (14, 2), past=[0, 70, 64, 9, 0], fresh=[23, 5, 1, 0, 0])
        assert_near(prefill(batch, tile), batch)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("window", [1, 2, 30, 63, 64, 65, 1000])
    @pytest.mark.parametrize("heads", [(1, 1), (7, 1)])
    def test_window(self, prefill: Prefill, tile: int, window: int, heads: tuple[int, int]) -> None:
        """Also windows so small that rows see nothing of the tiles that others of their block see."""
        batch = Batch.random(torch.float16, 64, heads, past=[0, 100], fresh=[140 // heads[0], 20])
        assert_near(prefill(batch, tile, window), batch, window)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    def test_window_hides_nan(self, prefill: Prefill, tile: int) -> None:
        """Whole tiles before the window are not read."""
        batch = Batch.random(torch.float16, 64, (2, 1), past=[128], fresh=[20])
        expected = prefill(batch, tile, 10)
        for cache in (batch.key, batch.value):
            cache[:, :, :KEYS] = math.nan
        assert torch.equal(prefill(batch, tile, 10), expected)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    def test_every_order_of_blocks(self, prefill: Prefill, tile: int) -> None:
        """Whatever the section, each tile of each pair has one block, and the bits are the same."""
        batch = Batch.random(torch.float16, 64, (9, 3), past=[0, 5], fresh=[50, 44])
        outputs = [prefill(batch, tile, section=section) for section in range(1, 7)]
        assert_near(outputs[0], batch)
        assert all(torch.equal(output, outputs[0]) for output in outputs)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("dtype", TYPES)
    def test_growing_scores(self, prefill: Prefill, tile: int, dtype: torch.dtype) -> None:
        """Each tile of keys outgrows the maximum of those before it, a little or a lot."""
        batch = Batch.random(dtype, 64, (2, 1), past=[300], fresh=[20])
        for growth in (1.0, 3.0, 20.0):
            steps = 1.0 + growth * (torch.arange(batch.key.shape[2]) // KEYS)
            grown = Batch(batch.query, (batch.key * steps[:, None]).to(dtype), batch.value, [300], [20])
            assert_near(prefill(grown, tile), grown)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("scale", [1e-30, 0.5, 100.0])
    def test_scales(self, prefill: Prefill, tile: int, scale: float) -> None:
        batch = Batch.random(torch.float16, 64, (2, 1), past=[40], fresh=[30])
        assert_near(prefill(batch, tile, scale=scale), batch, scale=scale)

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    def test_a_nan_query_spoils_its_head_only(self, prefill: Prefill, tile: int) -> None:
        batch = Batch.random(torch.float16, 64, (3, 1), past=[0], fresh=[40])
        expected = prefill(batch, tile)
        batch.query[0, 20, 1, 5] = math.nan
        output = prefill(batch, tile)
        spoiled = output.isnan()
        assert bool(spoiled[0, 20, 1].all()) and int(spoiled.sum()) == 64
        assert torch.equal(output[~spoiled], expected[~spoiled])

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    @pytest.mark.parametrize("past", [-4, 37, 41, 2**40])
    def test_lengths_out_of_range_stay_in_the_buffers(self, prefill: Prefill, tile: int, past: int) -> None:
        batch = Batch.random(torch.float16, 64, (2, 1), past=[20], fresh=[20], spare=0)
        for fresh in (-1, 5, 99):
            wrong = Batch(batch.query.nan_to_num(0.0), batch.key, batch.value, [past], [fresh])
            assert bool(prefill(wrong, tile).isfinite().all())


class TestHost:
    def test_no_sanitizer_complains(self) -> None:
        library = compile_for_host("libprefill-sanitized.so", SANITIZED, SOURCES)
        done = sanitizers.run("tests.plugins.prefill_probes", [str(library)])
        assert done.returncode == 0, done.stderr

    def test_no_races(self) -> None:
        library = compile_for_host("libprefill-races.so", RACES, SOURCES)
        done = sanitizers.run_apart("tests.plugins.prefill_probes", [str(library)])
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("tile", TILES, ids=NAMES)
    def test_the_order_of_threads_does_not_matter(self, prefill: Prefill, tile: int) -> None:
        batch = Batch.random(torch.bfloat16, 128, (4, 1), past=[100], fresh=[40])
        expected = prefill(batch, tile)
        for number in range(1, 5):
            prefill.library.host_cuda_set_seed(number)
            assert torch.equal(prefill(batch, tile), expected)
        prefill.library.host_cuda_set_seed(0)


class TestRefusals:
    @pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
    def test_scale(self, prefill: Prefill, scale: float) -> None:
        batch = Batch.random(torch.float16, 64, (1, 1), past=[0], fresh=[17])
        with pytest.raises(KernelError, match="prefill_attention: dtype 1, head_dim 64, scale"):
            prefill(batch, SHORT, scale=scale)

    def test_head_dim(self, prefill: Prefill) -> None:
        batch = Batch.random(torch.float16, 96, (1, 1), past=[0], fresh=[17])
        with pytest.raises(KernelError, match="head_dim 96"):
            prefill(batch, SHORT)

    def test_misaligned_pointer(self, prefill: Prefill) -> None:
        batch = Batch.random(torch.float16, 64, (1, 1), past=[0], fresh=[17])
        query = torch.zeros(batch.query.numel() + 1, dtype=torch.float16)[1:].view(batch.query.shape)
        shifted = Batch(query, batch.key, batch.value, [0], [17])
        with pytest.raises(KernelError, match=r"query is at 0x.*, expected a multiple of 16 bytes"):
            prefill(shifted, SHORT)


class TestOp:
    """Through the C ABI, which leaves more than 16 new tokens to these kernels."""

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("gpu", [H200, replace(A100, multiprocessors=1)], ids=["short", "tall"])
    @pytest.mark.parametrize("window", [0, 30])
    def test_equals_float64(self, host_kernels: Path, dtype: torch.dtype, gpu: Gpu, window: int) -> None:
        kernels = Kernels(host_kernels)
        tensors = batch_of([70, 0, 131], [20, 17, 0], 14, 2, 64, dtype)
        with pretending(kernels.library, gpu):
            output, _, _ = kernels.attention(tensors, window, scale=0.125)
            rotated, _, _ = kernels.attention(tensors, window, (torch.zeros(32), 1.0), scale=0.125)
        expected = attention_in_float64(tensors, 0.125, window)
        error = (output.to(torch.float64) - expected).abs().max().item()
        assert error <= EPSILON[dtype] * max(1.0, expected.abs().max().item())
        assert torch.equal(rotated, output), "a rotation by nothing"
