"""How the Q2MoE kernels cut their work up: tiles, grids, chunks, and where things lie in shared memory."""

from __future__ import annotations

import itertools
import shutil
from ctypes import byref, c_int64
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.plugins.tensorrt.kernels import QuantizedMoeDesc
from tests.host_cuda.compiling import compile_for_host
from tests.host_cuda.gpus import A100, H200, L4, RTX_4090, RTX_5090, Gpu
from tests.plugins.moe_probes import (
    BF16,
    HOPPER,
    LARGE,
    LARGEST,
    LARGEST_FOR_99_KIB,
    MEDIUM,
    SMALL,
    SOURCES,
    TILES,
    CGpu,
    Plan,
    TokenTile,
    Work,
)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels")

GPUS = [A100, L4, RTX_4090, H200, RTX_5090]
TILES_PER_GROUP = 16


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(compile_for_host("libmoe_probes.so", sources=SOURCES))


QWEN2_57B = (3584, 2560, 64, 8)
QWEN15_MOE = (2048, 1408, 60, 4)


@pytest.mark.parametrize(
    ("shape", "tokens", "tile"),
    [
        (QWEN2_57B, 1, SMALL),
        (QWEN2_57B, 8, SMALL),
        (QWEN2_57B, 64, SMALL),
        (QWEN2_57B, 65, MEDIUM),
        (QWEN2_57B, 160, MEDIUM),
        (QWEN2_57B, 256, LARGE),
        (QWEN2_57B, 512, LARGEST),
        (QWEN2_57B, 4096, LARGEST),
        (QWEN15_MOE, 1, SMALL),
        (QWEN15_MOE, 4096, LARGEST),
        ((64, 64, 8, 2), 4096, LARGEST_FOR_99_KIB),  # too few tiles of 256 rows for 132 multiprocessors
    ],
)
def test_tiles_on_an_h200(plan: Plan, shape: tuple[int, int, int, int], tokens: int, tile: int) -> None:
    assert plan.tile_of(H200, tokens, shape) == tile


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"sm{gpu.compute_capability}-{gpu.multiprocessors}")
@pytest.mark.parametrize("tokens", [1, 16, 64, 128, 256, 512, 4096, 16384])
def test_every_choice_fits_and_fills_the_gpu(plan: Plan, gpu: Gpu, tokens: int) -> None:
    for shape in (QWEN2_57B, QWEN15_MOE):
        hidden, intermediate, num_experts, top_k = shape
        tile = plan.tile_of(gpu, tokens, shape)
        shape_of_tile = plan.tile(tile)
        bytes_of_ring = shape_of_tile.stages * (shape_of_tile.weight_rows + shape_of_tile.tokens) * 128
        assert plan.shared_bytes(tile) == bytes_of_ring <= gpu.shared_bytes_per_block
        token_tiles = plan.max_token_tiles(c_int64(tokens * top_k), num_experts, shape_of_tile.tokens)
        for rows, matrices in ((intermediate, 2), (hidden, 1)):
            tiles = token_tiles * plan.weight_tiles(tile, rows, matrices)
            blocks = plan.grid_blocks(tile, byref(CGpu(*astuple(gpu))), c_int64(tiles))
            assert 1 <= blocks <= tiles
            # On every multiprocessor what fits, and never more.
            per_multiprocessor = -(-blocks // gpu.multiprocessors)
            assert per_multiprocessor * (bytes_of_ring + 1024) <= gpu.shared_bytes_per_multiprocessor
            assert blocks >= min(tiles, gpu.multiprocessors)
        # Weights in flight, where tokens are few: 4.3 TB/s for 1 us are 33 KB per multiprocessor.
        if tokens <= 8 and gpu is H200:
            stages_in_flight = (shape_of_tile.stages - 1) * shape_of_tile.weight_rows * 128
            assert blocks * stages_in_flight >= 33_000 * gpu.multiprocessors


def test_the_tile_for_hopper_fits_one(plan: Plan) -> None:
    """No plan chooses it yet."""
    assert plan.shared_bytes(HOPPER) <= H200.shared_bytes_per_block


def test_small_shared_memory_never_gets_the_largest_ring(plan: Plan) -> None:
    below = replace(H200, shared_bytes_per_block=plan.shared_bytes(LARGEST) - 1)
    assert plan.tile_of(below, 4096, QWEN2_57B) == LARGEST_FOR_99_KIB


@given(slots=st.integers(1, 10**6), experts=st.integers(1, 200), tokens=st.sampled_from([16, 32, 64, 128]))
def test_no_routing_has_more_token_tiles(plan: Plan, slots: int, experts: int, tokens: int) -> None:
    """The worst spreads: one slot to each of some experts, the rest to one."""
    most = plan.max_token_tiles(c_int64(slots), experts, tokens)
    for single in {0, min(experts - 1, slots - 1)}:
        assert single + -(-(slots - single) // tokens) <= most
    assert most <= plan.max_token_tiles(c_int64(slots + 1), experts, tokens)


@given(tokens=st.integers(1, 2**31 - 1), more=st.integers(0, 10**4))
def test_chunks_cover_all_tokens(plan: Plan, tokens: int, more: int) -> None:
    def chunks(count: int) -> list[int]:
        result = (c_int64 * 3)()
        plan.chunks(c_int64(count), result)
        return list(result)

    size, count, most = chunks(tokens)
    assert size % 32 == 0
    assert (count - 1) * size < tokens <= count * size
    assert count <= most <= min(128, chunks(tokens + more)[2])


@given(tiles=st.integers(0, 10**6), blocks=st.integers(1, 1000))
def test_balanced_blocks_differ_by_one_tile(plan: Plan, tiles: int, blocks: int) -> None:
    used = plan.balanced_blocks(tiles, blocks)
    assert used <= blocks
    assert (used == 0) == (tiles == 0)
    if used:
        assert -(-tiles // used) == -(-tiles // blocks)
        assert used == 1 or -(-tiles // (used - 1)) > -(-tiles // used)


@given(
    slots=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    weight_tiles=st.integers(1, 9),
    tokens=st.sampled_from([16, 128]),
)
def test_tiles_of_the_grid_are_all_the_work_once(
    plan: Plan, slots: list[int], weight_tiles: int, tokens: int
) -> None:
    entries: list[TokenTile] = []
    expected = []
    position = 0
    for expert, count in enumerate(slots):
        tiles = -(-count // tokens)
        entries += [TokenTile(expert, len(entries), tiles, position, count)] * tiles
        for weight_tile, tile in itertools.product(range(weight_tiles), range(tiles)):
            expected.append(
                (expert, weight_tile, position + tile * tokens, min(tokens, count - tile * tokens))
            )
        position += count
    array = (TokenTile * len(entries))(*entries)
    found = []
    for index in range(len(entries) * weight_tiles):
        work = Work()
        plan.find_work(array, weight_tiles, tokens, index, byref(work))
        found.append((work.expert, work.weight_tile, work.first_position, work.tokens))
    assert sorted(found) == sorted(expected)
    # A tile of weights is read in one go for each group of token tiles.
    runs = len(list(itertools.groupby(found, key=lambda work: work[:2])))
    groups = sum(-(-count // tokens // TILES_PER_GROUP) for count in slots)
    assert runs == groups * weight_tiles or weight_tiles == 1


def bank_groups(offsets: list[int]) -> list[int]:
    """Of 16-byte accesses: which of the eight groups of four banks."""
    assert all(offset % 16 == 0 for offset in offsets)
    return sorted(offset // 16 % 8 for offset in offsets)


def test_shared_memory_has_no_bank_conflicts(plan: Plan) -> None:
    """Eight lanes at a time: a copy writes the chunks of a row, ldmatrix reads one chunk of eight rows."""
    every_group = list(range(8))
    for row in range(384):
        assert bank_groups([plan.swizzled(row, chunk) for chunk in range(8)]) == every_group
        assert {plan.swizzled(row, chunk) // 128 for chunk in range(8)} == {row}
    for first, chunk in itertools.product(range(0, 384, 8), range(8)):
        assert bank_groups([plan.swizzled(first + i, chunk) for i in range(8)]) == every_group


@pytest.mark.parametrize("tile", TILES)
def test_rows_in_shared_memory_are_all_outputs(plan: Plan, tile: int) -> None:
    """Gated: once as gate and once as up, in the same place of the two halves of 16 rows."""
    rows = range(plan.tile(tile).weight_rows)
    assert sorted(plan.output_of(tile, row, 0) for row in rows) == list(rows)
    gate = [row for row in rows if row % 16 < 8]
    assert sorted(plan.output_of(tile, row, 1) for row in gate) == list(range(len(rows) // 2))
    assert all(plan.output_of(tile, row, 1) == plan.output_of(tile, row + 8, 1) for row in gate)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("is_gated", [0, 1])
def test_a_lane_stores_neighbours(plan: Plan, tile: int, is_gated: int) -> None:
    """After the transposition lane c has places 2 c and 2 c + 1 of every block of eight outputs."""
    shape = plan.tile(tile)
    row_tiles = shape.weight_rows // shape.weight_warps // 16
    apart = 64 if shape.is_hopper else 16  # of the first warp's rows
    halves = [0] if is_gated else [0, 8]
    blocks = [tile * apart + half for tile in range(row_tiles) for half in halves]
    vector = min(4, len(blocks))
    for first, lane in itertools.product(range(0, len(blocks), vector), range(4)):
        outputs = [
            plan.output_of(tile, block + 2 * lane + i, is_gated)
            for block in blocks[first : first + vector]
            for i in range(2)
        ]
        start = outputs[0]
        assert outputs == list(range(start, start + 2 * vector))
        assert start % (2 * vector) == 0


def test_packed_weights_have_no_bank_conflicts(plan: Plan) -> None:
    """ldmatrix reads a chunk of eight rows; codes of 8 bits are read two chunks of four rows at a time."""
    every_group = list(range(8))
    for first, chunk in itertools.product(range(0, 256, 8), range(4)):
        assert bank_groups([plan.swizzled_codes(first + i, chunk) for i in range(8)]) == every_group
    for first, chunk in itertools.product(range(0, 256, 4), (0, 2)):
        rows = range(first, first + 4)
        assert (
            bank_groups([plan.swizzled_codes(row, chunk + i) for row in rows for i in (0, 1)]) == every_group
        )
    for row in range(256):
        assert {plan.swizzled_codes(row, chunk) // 64 for chunk in range(4)} == {row}


@pytest.mark.parametrize("row_bytes", [128, 256])
def test_tokens_beside_packed_weights_have_no_bank_conflicts(plan: Plan, row_bytes: int) -> None:
    """A quarter of a warp reads, and a copy writes, four chunks of two tokens."""
    for row, part in itertools.product(range(0, 128, 2), range(row_bytes // 64)):
        read = [
            plan.swizzled_tokens(row_bytes, row + i, part * 4 + chunk) for i in (0, 1) for chunk in range(4)
        ]
        assert bank_groups(read) == list(range(8))
        assert {offset // row_bytes for offset in read} == {row, row + 1}


@pytest.mark.parametrize(
    ("gpu", "tokens", "bits", "tile"),
    [
        (H200, 1, 4, 0),
        (H200, 64, 8, 0),
        (H200, 65, 4, 1),
        (A100, 256, 4, 2),
        (A100, 4096, 4, 3),
        (A100, 4096, 8, 2),  # codes of 8 bits have no larger one
        (RTX_4090, 4096, 4, 2),  # 99 KiB hold no larger one
    ],
)
def test_tiles_of_packed_weights(plan: Plan, gpu: Gpu, tokens: int, bits: int, tile: int) -> None:
    desc = QuantizedMoeDesc(tokens, *QWEN2_57B, 0, BF16, bits, 32)
    assert plan.choose_quantized(byref(desc), byref(CGpu(*astuple(gpu)))) == tile
    shared = plan.quantized_shared_bytes(tile, bits)
    assert shared <= gpu.shared_bytes_per_block
    shape = plan.quantized_tile(tile)
    if tokens == 1:  # 4.3 TB/s for 1 us, by the 320 blocks that share the 640 tiles of gate and up
        assert 320 * (shape.stages - 1) * shape.weight_rows * 64 >= 4_300_000
