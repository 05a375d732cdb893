"""The Q2QuantizedMoE kernels, compiled for the host, against float64 of the dequantized weights."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from q2export.exporter.graph.ops.quantized import dequantize
from q2export.plugins.tensorrt.kernels import QuantizedMoeDesc
from tests.host_cuda.compiling import compile_for_host
from tests.host_cuda.gpus import A100, H200, L4, pretending, thread_order
from tests.plugins.kernels import KernelError, Kernels
from tests.plugins.moe_probes import SOURCES, TileKernels, moe_in_float64
from tests.plugins.test_csrc_kernels import assert_near

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels")

NARROW = [torch.float16, torch.bfloat16]
SCHEMES = list(itertools.product([4, 8], [32, 64, 128]))
TILES = range(4)  # kQuantizedMoeTiles; the last for 4 bits alone


@pytest.fixture
def probes() -> Path:
    return compile_for_host("libmoe_probes.so", sources=SOURCES)


@dataclass(frozen=True)
class Problem:
    """Hidden states, logits, and experts in the packed form: gate_up, scales, down, scales."""

    hidden: Tensor
    logits: Tensor
    packed: Sequence[Tensor]
    bits: int
    block: int

    @classmethod
    def of(
        cls,
        tokens: int,
        experts: int,
        hidden: int,
        intermediate: int,
        dtype: torch.dtype,
        bits: int,
        block: int,
    ) -> Problem:
        packed = []
        for rows, columns in ((2 * intermediate, hidden), (hidden, intermediate)):
            packed.append(torch.randint(256, (experts, rows, columns * bits // 8), dtype=torch.uint8))
            scale = torch.randn(experts, rows, columns // block) / (columns**0.5 * (1 << bits) / 4)
            packed.append(scale.to(torch.float16))  # of both signs, as the quantizer makes them
        inputs = torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, experts).to(dtype)
        return cls(*inputs, packed, bits, block)

    def expected(self, top_k: int, norm: bool) -> Tensor:
        wide = [
            tensor.to(torch.float64) if tensor.dtype == torch.float16 else tensor for tensor in self.packed
        ]
        gate_up, down = (dequantize(*wide[i : i + 2], None, self.bits, self.block) for i in (0, 2))
        weights = [list(gate_up[:, 0::2]), list(gate_up[:, 1::2]), list(down)]
        return moe_in_float64(self.hidden, self.logits, weights, top_k, norm)

    def run(self, kernels: Kernels, top_k: int, norm: bool, rows: slice = slice(None)) -> Tensor:
        arguments = (self.packed, top_k, norm, self.bits, self.block)
        return kernels.quantized_moe(self.hidden[rows], self.logits[rows], *arguments)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("bits", "block"), SCHEMES)
def test_every_tile_equals_float64(probes: Path, dtype: torch.dtype, bits: int, block: int) -> None:
    """Steps beyond the ring, several weight tiles and tiles to a block; odd numbers of blocks of 128."""
    problem = Problem.of(70, 2, 1152, 128, dtype, bits, block)
    problem.logits[:, 0] = torch.where(torch.arange(70) % 3 == 0, 4.0, -4.0)
    expected = problem.expected(1, False)
    for tile in TILES[: 4 if bits == 4 else 3]:
        kernels = TileKernels(probes, tile)
        with pretending(kernels.library, replace(H200, multiprocessors=2)):
            assert_near(problem.run(kernels, 1, False), expected)


@pytest.mark.parametrize(("experts", "top_k"), [(60, 4), (64, 8)])
@pytest.mark.parametrize("tokens", [1, 9, 33])
def test_layouts_of_real_models(kernels: Kernels, experts: int, top_k: int, tokens: int) -> None:
    """Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B."""
    for norm, bits in itertools.product((False, True), (4, 8)):
        problem = Problem.of(tokens, experts, 128, 128, torch.bfloat16, bits, 32)
        assert_near(problem.run(kernels, top_k, norm), problem.expected(top_k, norm))


@pytest.mark.parametrize("tile", TILES)
def test_borders_of_tiles(probes: Path, tile: int) -> None:
    kernels = TileKernels(probes, tile)
    for full in (1, 8, 9, 16, 17, 32, 33, 63, 64, 65, 95, 97):
        problem = Problem.of(full + 2, 3, 128, 128, torch.float16, 4, 128)
        problem.logits[:] = torch.tensor([4.0, 0.0, -4.0])
        problem.logits[-2:] = torch.tensor([-4.0, 0.0, 4.0])
        assert_near(problem.run(kernels, 1, True), problem.expected(1, True))


def test_bits_depend_on_neither_tile_nor_gpu_nor_batch(kernels: Kernels, probes: Path) -> None:
    problem = Problem.of(70, 4, 256, 128, torch.bfloat16, 4, 64)
    together = problem.run(kernels, 2, True)
    for tile in TILES:
        assert torch.equal(problem.run(TileKernels(probes, tile), 2, True), together)
    for gpu in (replace(H200, multiprocessors=1), replace(L4, multiprocessors=1), A100):
        with pretending(kernels.library, gpu), thread_order(kernels.library, 7):
            assert torch.equal(problem.run(kernels, 2, True), together)
    for first, end in ((5, 6), (20, 40)):
        assert torch.equal(problem.run(kernels, 2, True, slice(first, end)), together[first:end])


@pytest.mark.parametrize(
    ("dtype", "hidden", "intermediate"),
    [(torch.float32, 128, 128), (torch.float16, 96, 32), (torch.bfloat16, 64, 160)],
)
def test_float32_and_odd_sizes_run_on_the_reference(
    kernels: Kernels, dtype: torch.dtype, hidden: int, intermediate: int
) -> None:
    for bits in (4, 8):
        problem = Problem.of(5, 6, hidden, intermediate, dtype, bits, 32)
        assert_near(problem.run(kernels, 2, False), problem.expected(2, False))


def test_every_code_is_exact(kernels: Kernels) -> None:
    """Every code at every place of a row is multiplied by a one, and by zeros beside it."""
    for dtype, bits in itertools.product(NARROW, (4, 8)):
        problem = Problem.of(128, 1, 128, 128, dtype, bits, 128)
        problem.hidden[:] = torch.eye(128)
        codes = torch.arange(256).to(torch.uint8).repeat(16 * bits)
        problem.packed[0].copy_(codes.reshape(problem.packed[0].shape))
        problem.packed[1].fill_(1.0)
        assert_near(problem.run(kernels, 1, True), problem.expected(1, True))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bits", 2, "bits is 2, expected 4 or 8"),
        ("block_size", 16, "block_size is 16, expected 32, 64 or 128"),
        ("hidden_size", 96, "hidden_size is 96, expected a multiple of 64"),
        ("intermediate_size", 32, "intermediate_size is 32, expected a multiple of 64"),
        ("top_k", 9, "top_k is 9, expected 1 .. 8"),
    ],
)
def test_what_is_refused(kernels: Kernels, field: str, value: int, message: str) -> None:
    desc = QuantizedMoeDesc(1, 128, 128, 8, 2, 0, 1, 4, 64)
    setattr(desc, field, value)
    with pytest.raises(KernelError, match=f"invalid argument: quantized_moe: {message}"):
        kernels.workspace("quantized_moe", desc)
