"""How prefill attention is cut into blocks, and where their lanes read and write shared memory."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from q2export.plugins.tensorrt.kernels import AttentionDesc
from tests.host_cuda.compiling import compile_for_host
from tests.host_cuda.gpus import A100, H200, KIB, MIB, RTX_4090, RTX_5090, Gpu
from tests.plugins.kernels import DTYPES, pointers
from tests.plugins.prefill_probes import ROWS, SHORT, SOURCES, TALL, Prefill

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels")

B200 = Gpu(100, 148, 227 * KIB, 228 * KIB, 126 * MIB)


@pytest.fixture(scope="module")
def prefill() -> Prefill:
    return Prefill(compile_for_host("libprefill.so", sources=SOURCES))


def shape(
    sequence: int,
    *,
    batch: int = 1,
    heads: tuple[int, int] = (28, 4),
    head_dim: int = 128,
    capacity: int = 0,
) -> AttentionDesc:
    capacity = max(sequence, capacity)
    return AttentionDesc(batch, sequence, capacity, *heads, head_dim, 0, DTYPES[torch.float16], 0.1)


class TestPlan:
    @pytest.mark.parametrize(
        ("gpu", "desc", "tile"),
        [
            (A100, shape(8192), TALL),
            (H200, shape(8192), TALL),
            (B200, shape(8192), TALL),
            (RTX_4090, shape(8192), SHORT),  # two tall blocks need 164 KB
            (RTX_5090, shape(8192), SHORT),
            (RTX_4090, shape(8192, head_dim=64), TALL),
            (H200, shape(8192, heads=(14, 2), head_dim=64), TALL),
            (H200, shape(100), SHORT),  # too little work for a tall block on each multiprocessor
            (H200, shape(100, batch=32), TALL),
            (H200, shape(17, batch=33), TALL),
            (H200, shape(17), SHORT),
        ],
    )
    def test_tile(self, prefill: Prefill, gpu: Gpu, desc: AttentionDesc, tile: int) -> None:
        assert prefill.plan(desc, gpu).tile == tile

    def test_one_block_for_each_tile_of_rows(self, prefill: Prefill) -> None:
        plan = prefill.plan(shape(8192), H200)
        assert plan.row_tiles == 8192 * 7 // 128
        assert plan.blocks == 4 * plan.row_tiles

    def test_sections_fit_in_half_of_l2(self, prefill: Prefill) -> None:
        """32k keys of a KV head are 16 MiB with their values: one fits in half of 50 MiB."""
        assert prefill.plan(shape(32768, batch=4), H200).section == 1
        assert prefill.plan(shape(32768, batch=4), B200).section == 3
        assert prefill.plan(shape(512, batch=4), H200).section == 16

    def test_sections_have_work_for_all(self, prefill: Prefill) -> None:
        """A chunk on a long past: no KV head fits in L2, but one alone has too few blocks."""
        plan = prefill.plan(shape(512, batch=8, capacity=131072), H200)
        assert plan.section * plan.row_tiles >= 2 * 2 * 132 > (plan.section - 1) * plan.row_tiles

    @given(
        gpu=st.sampled_from([A100, RTX_4090, H200, B200, RTX_5090]),
        sequence=st.integers(0, 200_000),
        batch=st.integers(0, 300),
        kv_heads=st.integers(1, 20),
        group=st.integers(1, 80),
        head_dim=st.sampled_from([64, 128]),
        capacity=st.integers(0, 200_000),
    )
    @settings(max_examples=200)
    def test_every_plan_covers_all_rows(
        self,
        prefill: Prefill,
        gpu: Gpu,
        sequence: int,
        batch: int,
        kv_heads: int,
        group: int,
        head_dim: int,
        capacity: int,
    ) -> None:
        heads = (kv_heads * group, kv_heads)
        desc = shape(sequence, batch=batch, heads=heads, head_dim=head_dim, capacity=capacity)
        plan = prefill.plan(desc, gpu)
        assert plan.blocks == batch * kv_heads * plan.row_tiles
        assert 0 <= plan.row_tiles * ROWS[plan.tile] - sequence * group < ROWS[plan.tile]
        assert plan.blocks == 0 or 1 <= plan.section <= batch * kv_heads

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_shared_memory_fits(self, prefill: Prefill, head_dim: int) -> None:
        """Of a block with the opt-in; of two blocks, each with 1 KiB of the driver's, on a multiprocessor."""
        short, tall = (prefill.library.probe_prefill_shared_bytes(tile, head_dim) for tile in (SHORT, TALL))
        assert short <= RTX_4090.shared_bytes_per_block and tall <= A100.shared_bytes_per_block
        assert 2 * (short + KIB) <= RTX_4090.shared_bytes_per_multiprocessor
        assert 2 * (tall + KIB) <= A100.shared_bytes_per_multiprocessor


class TestSharedMemory:
    """Where the 32 lanes of a warp read and write a tile, and in which of the 32 banks of 4 bytes that is."""

    @pytest.fixture(params=[64, 128])
    def offsets(self, prefill: Prefill, request: pytest.FixtureRequest) -> tuple[int, Tensor]:
        """head_dim and [3, chunks, lanes]: of keys, of values, of the output."""
        head_dim: int = request.param
        offsets = torch.full((3, head_dim // 8, 32), -2, dtype=torch.int32)
        assert prefill.library.probe_prefill_offsets(head_dim, *pointers(offsets)) == 0
        return head_dim, offsets

    @staticmethod
    def expected(head_dim: int, row: int, chunk: int) -> int:
        return row * head_dim * 2 + (chunk ^ row % 8) * 16

    def test_lanes_read_their_rows(self, offsets: tuple[int, Tensor]) -> None:
        """Of 16 rows by 16 channels: lanes 8 m .. give the rows of the m-th 8x8 matrix."""
        head_dim, (keys, values, _) = offsets[0], offsets[1].tolist()
        for chunk in range(0, head_dim // 8, 2):
            for lane in range(32):
                matrix, row = divmod(lane, 8)
                by_columns = self.expected(head_dim, row + matrix // 2 * 8, chunk + matrix % 2)
                by_rows = self.expected(head_dim, row + matrix % 2 * 8, chunk + matrix // 2)
                assert keys[chunk][lane] == by_columns
                assert values[chunk][lane] == by_rows

    def test_reading_a_matrix_has_no_bank_conflict(self, offsets: tuple[int, Tensor]) -> None:
        """The eight rows that are read at once, 16 bytes each, are in eight groups of four banks."""
        for read in offsets[1][:2, ::2]:
            for matrix in read.reshape(-1, 8):
                assert sorted((matrix // 16 % 8).tolist()) == list(range(8))

    def test_writing_the_output_has_no_bank_conflict(self, offsets: tuple[int, Tensor]) -> None:
        for chunk in offsets[1][2]:
            assert sorted((chunk // 4 % 32).tolist()) == list(range(32))
