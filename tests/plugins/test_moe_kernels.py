"""The Q2MoE kernels, compiled for the host, against float64: tiles, routing, sort, fallbacks."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from q2export.exporter.graph.ops.moe import moe_reference
from q2export.plugins.tensorrt.kernels import MoeDesc
from tests.host_cuda.compiling import compile_for_host
from tests.host_cuda.gpus import A100, H200, L4, pretending, thread_order
from tests.plugins.kernels import KernelError, Kernels
from tests.plugins.moe_probes import SOURCES, TILES, TileKernels, moe_in_float64
from tests.plugins.test_csrc_kernels import EPSILON, assert_near, experts

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels")

NARROW = [torch.float16, torch.bfloat16]
ONE_SM = replace(H200, multiprocessors=1)  # has the largest tile at any size
SHAPES = [(60, 4), (64, 8)]  # Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B


@pytest.fixture
def probes() -> Path:
    return compile_for_host("libmoe_probes.so", sources=SOURCES)


def problem(
    tokens: int, num_experts: int, hidden: int, intermediate: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Hidden states, router logits and weights."""
    weights = experts(num_experts, hidden, intermediate, dtype)
    return torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, num_experts).to(dtype), weights


class TestTokens:
    @pytest.mark.parametrize("dtype", NARROW)
    @pytest.mark.parametrize(("num_experts", "top_k"), SHAPES)
    @pytest.mark.parametrize("tokens", [1, 2, 7, 33, 130])
    def test_equals_float64(
        self, kernels: Kernels, dtype: torch.dtype, num_experts: int, top_k: int, tokens: int
    ) -> None:
        """Sizes that fill neither the last step of a row (72 = 64 + 8) nor the last tile of weights."""
        hidden, logits, weights = problem(tokens, num_experts, 72, 40, dtype)
        for norm in (False, True):
            expected = moe_in_float64(hidden, logits, weights, top_k, norm)
            assert_near(kernels.moe(hidden, logits, weights, top_k, norm), expected)

    @pytest.mark.parametrize("dtype", NARROW)
    def test_error_is_no_larger_than_that_of_torch(self, kernels: Kernels, dtype: torch.dtype) -> None:
        hidden, logits, weights = problem(33, 8, 328, 200, dtype)
        expected = moe_in_float64(hidden, logits, weights, 4, True)
        of_torch = (moe_reference(hidden, logits, *weights, 8, 4, 1).to(torch.float64) - expected).norm()
        ours = (kernels.moe(hidden, logits, weights, 4, True).to(torch.float64) - expected).norm()
        assert 0 < ours <= 1.25 * of_torch

    def test_float32_and_odd_sizes_run_on_the_reference(self, kernels: Kernels) -> None:
        for dtype, (hidden_size, intermediate) in itertools.product(
            [torch.float32, *NARROW], [(20, 24), (24, 9)]
        ):
            hidden, logits, weights = problem(9, 6, hidden_size, intermediate, dtype)
            expected = moe_in_float64(hidden, logits, weights, 2, False)
            assert_near(kernels.moe(hidden, logits, weights, 2, False), expected)

    def test_many_chunks_of_tokens(self, kernels: Kernels) -> None:
        """65 routing blocks of 64 tokens, the last of them with one."""
        hidden, logits, weights = problem(4097, 4, 8, 8, torch.float16)
        expected = moe_in_float64(hidden, logits, weights, 2, False)
        assert_near(kernels.moe(hidden, logits, weights, 2, False), expected)

    def test_subnormal_and_large_values(self, kernels: Kernels) -> None:
        """Gates far on either side of zero: silu is 0 or the gate itself, never NaN."""
        hidden, logits, weights = problem(3, 4, 16, 8, torch.bfloat16)
        for scale in (1e-38, 1e4):
            weights[0] = [(gate * scale).to(torch.bfloat16) for gate in weights[0]]
            output = kernels.moe(hidden, logits, weights, 2, True).to(torch.float64)
            expected = moe_in_float64(hidden, logits, weights, 2, True)
            bound = 2 * EPSILON[torch.bfloat16] * expected.abs().max() + 1e-37
            assert (output - expected).abs().max() <= bound


class TestTiles:
    """Each tile, whatever the plan would choose."""

    @pytest.fixture(params=TILES)
    def tile(self, request: pytest.FixtureRequest, probes: Path) -> TileKernels:
        return TileKernels(probes, request.param)

    @pytest.mark.parametrize("dtype", NARROW)
    def test_equals_float64(self, tile: TileKernels, dtype: torch.dtype) -> None:
        """More steps than any ring has stages, several weight tiles and several tiles to a block."""
        hidden, logits, weights = problem(150, 2, 456, 264, dtype)
        logits[:, 0] = torch.where(torch.arange(150) % 3 == 0, 4.0, -4.0)  # a third, and the rest
        with pretending(tile.library, replace(H200, multiprocessors=2)):
            output = tile.moe(hidden, logits, weights, 1, False)
        assert_near(output, moe_in_float64(hidden, logits, weights, 1, False))

    @pytest.mark.parametrize("full", [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 97, 127, 128])
    def test_borders_of_tiles(self, tile: TileKernels, full: int) -> None:
        """One expert with so many tokens, two with one token between them, one with a tile and a token."""
        counts = [full, 0, 1, 129]
        chosen = torch.arange(4).repeat_interleave(torch.tensor(counts))
        hidden, _, weights = problem(len(chosen), 4, 16, 8, torch.float16)
        logits = functional.one_hot(chosen, 4).to(torch.float16)
        expected = moe_in_float64(hidden, logits, weights, 1, True)
        assert_near(tile.moe(hidden, logits, weights, 1, True), expected)

    @pytest.mark.parametrize("intermediate", [8, 32, 64, 72])
    @pytest.mark.parametrize("hidden_size", [8, 64, 128, 200])
    def test_borders_of_matrices(self, tile: TileKernels, hidden_size: int, intermediate: int) -> None:
        hidden, logits, weights = problem(5, 3, hidden_size, intermediate, torch.bfloat16)
        expected = moe_in_float64(hidden, logits, weights, 2, True)
        assert_near(tile.moe(hidden, logits, weights, 2, True), expected)

    def test_bits_depend_on_neither_grid_nor_order(self, tile: TileKernels) -> None:
        hidden, logits, weights = problem(130, 4, 200, 72, torch.bfloat16)
        expected = tile.moe(hidden, logits, weights, 2, True)
        for multiprocessors in (1, 3):
            with pretending(tile.library, replace(H200, multiprocessors=multiprocessors)):
                assert torch.equal(tile.moe(hidden, logits, weights, 2, True), expected)
        with thread_order(tile.library, 7):
            assert torch.equal(tile.moe(hidden, logits, weights, 2, True), expected)


def test_bits_depend_on_neither_gpu_nor_batch(kernels: Kernels) -> None:
    """The plan takes other tiles for other GPUs and numbers of tokens, with the same sums."""
    hidden, logits, weights = problem(130, 4, 200, 72, torch.bfloat16)
    together = kernels.moe(hidden, logits, weights, 2, True)
    for gpu in (ONE_SM, replace(L4, multiprocessors=1), A100):
        with pretending(kernels.library, gpu):
            assert torch.equal(kernels.moe(hidden, logits, weights, 2, True), together)
    for first, end in ((5, 6), (20, 40), (60, 130)):
        alone = kernels.moe(hidden[first:end], logits[first:end], weights, 2, True)
        assert torch.equal(alone, together[first:end])


class TestRouting:
    @pytest.mark.parametrize("dtype", NARROW)
    def test_all_tokens_to_one_expert_and_idle_ones_not_read(
        self, kernels: Kernels, dtype: torch.dtype
    ) -> None:
        """More tiles of one expert than are multiplied in a row; the weights of the others are NaN."""
        hidden, _, weights = problem(290, 40, 24, 16, dtype)
        logits = torch.full((290, 40), -3.0, dtype=dtype)
        logits[:, 17] = 3.0
        for kind in weights:
            for e in set(range(40)) - {17}:
                kind[e].fill_(math.nan)
        output = kernels.moe(hidden, logits, weights, 1, True)
        assert_near(output, moe_in_float64(hidden, logits, weights, 1, True))

    @pytest.mark.parametrize("dtype", NARROW)
    @pytest.mark.parametrize("tokens", [5, 70])
    def test_all_experts_chosen(self, kernels: Kernels, dtype: torch.dtype, tokens: int) -> None:
        hidden, logits, weights = problem(tokens, 5, 24, 16, dtype)
        for norm in (False, True):
            expected = moe_in_float64(hidden, logits, weights, 5, norm)
            assert_near(kernels.moe(hidden, logits, weights, 5, norm), expected)

    @pytest.mark.parametrize("num_experts", [1, 31, 65, 128, 129, 257, 1024, 1025])
    def test_any_number_of_experts(self, kernels: Kernels, num_experts: int) -> None:
        """Logits in registers or read again; pointers by value or from a table; at last the reference."""
        top_k = min(3, num_experts)
        hidden, logits, weights = problem(3, num_experts, 8, 8, torch.float16)
        expected = moe_in_float64(hidden, logits, weights, top_k, False)
        assert_near(kernels.moe(hidden, logits, weights, top_k, False), expected)

    @pytest.mark.parametrize("dtype", NARROW)
    @pytest.mark.parametrize("tokens", [6, 80])
    def test_ties_go_to_the_lower_index(self, kernels: Kernels, dtype: torch.dtype, tokens: int) -> None:
        """Few distinct logits, so that most ranks are ties; 0 and -0 are one."""
        hidden, _, weights = problem(tokens, 70, 16, 8, dtype)
        logits = torch.tensor([-1.0, -0.0, 0.0])[torch.randint(3, (tokens, 70))].to(dtype)
        logits[0] = 0.0
        expected = moe_in_float64(hidden, logits, weights, 9, False)
        assert_near(kernels.moe(hidden, logits, weights, 9, False), expected)

    @pytest.mark.parametrize("tokens", [4, 90])
    @pytest.mark.parametrize("wrong", [[math.nan], [-math.nan], [math.inf], [-math.inf] * 6, [math.inf] * 2])
    def test_no_softmax_spoils_its_token_only(
        self, kernels: Kernels, tokens: int, wrong: list[float]
    ) -> None:
        hidden, logits, weights = problem(tokens, 6, 16, 8, torch.float16)
        clean = kernels.moe(hidden, logits, weights, 2, True)
        logits[1, : len(wrong)] = torch.tensor(wrong)
        output = kernels.moe(hidden, logits, weights, 2, True)
        rest = torch.arange(tokens) != 1
        assert bool(output[1].isnan().all())
        assert torch.equal(output[rest], clean[rest])

    def test_minus_infinity_is_probability_zero(self, kernels: Kernels) -> None:
        hidden, _, weights = problem(2, 4, 16, 8, torch.float16)
        logits = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0], [3.0, *[-math.inf] * 3]]).to(torch.float16)
        for norm in (False, True):
            expected = moe_in_float64(hidden, logits, weights, 3, norm)
            assert_near(kernels.moe(hidden, logits, weights, 3, norm), expected)


class Misaligned(Kernels):
    """Tensors that start two bytes after a multiple of 16."""

    def __init__(self, library: Path, which: int) -> None:
        super().__init__(library)
        self.which = which
        self.calls = itertools.count()

    def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if next(self.calls) != self.which:
            return super().moved(tensors)
        copies = []
        for tensor in tensors:
            storage = torch.empty(tensor.numel() + 9, dtype=tensor.dtype)
            start = -storage.data_ptr() % 16 // 2 + 1
            copies.append(storage[start : start + tensor.numel()].view(tensor.shape).copy_(tensor))
        return copies


@pytest.mark.parametrize(("which", "name"), list(enumerate(["hidden", "gate[0]", "up[0]", "down[0]"])))
def test_misaligned_tensors_are_refused(host_kernels: Path, which: int, name: str) -> None:
    hidden, logits, weights = problem(5, 4, 24, 16, torch.bfloat16)
    message = rf"invalid argument: moe: {re.escape(name)} is at 0x\w+, expected a multiple of 16 bytes"
    with pytest.raises(KernelError, match=message):
        Misaligned(host_kernels, which).moe(hidden, logits, weights, 2, True)


def test_alignment_does_not_matter_where_the_reference_runs(host_kernels: Path) -> None:
    hidden, logits, weights = problem(5, 4, 24, 16, torch.float32)
    expected = moe_in_float64(hidden, logits, weights, 2, True)
    assert_near(Misaligned(host_kernels, 0).moe(hidden, logits, weights, 2, True), expected)


def test_a_gpu_with_little_shared_memory_runs_the_reference(kernels: Kernels) -> None:
    hidden, logits, weights = problem(5, 4, 24, 16, torch.bfloat16)
    expected = moe_in_float64(hidden, logits, weights, 2, True)
    with pretending(kernels.library, replace(L4, shared_bytes_per_block=48 << 10)):
        assert_near(kernels.moe(hidden, logits, weights, 2, True), expected)


def test_a_missing_expert_is_named(kernels: Kernels) -> None:
    desc, somewhere = MoeDesc(1, 8, 8, 3, 1, 0, 1), ctypes.c_void_p(256)
    weights = (ctypes.c_void_p * 3)(256, None, 256)
    tensors = [somewhere, somewhere, weights, weights, weights, somewhere]
    status = kernels.library.q2export_moe(ctypes.byref(desc), *tensors, somewhere, ctypes.c_size_t(0), None)
    assert status == 1
    assert kernels.library.q2export_last_error() == b"moe: gate[1] is a null pointer"
