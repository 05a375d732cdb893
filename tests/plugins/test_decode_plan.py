"""How decode attention is cut into blocks: pure functions of shapes and GPU, compiled for the host."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import shutil
from ctypes import byref, c_int32, c_int64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.dtypes import BY_NAME
from q2export.plugins.tensorrt.kernels import AttentionDesc
from tests.host_cuda.compiling import INCLUDES, WARNINGS, run_compiler
from tests.host_cuda.gpus import A100, H200, KIB, L4, MIB, RTX_5090, Gpu

SOURCE = Path(__file__).with_name("decode_plan.cpp")
B200 = Gpu(100, 148, 227 * KIB, 228 * KIB, 126 * MIB)
GPUS = {"a100": A100, "l4": L4, "h200": H200, "b200": B200, "rtx5090": RTX_5090}

MAX_SPLITS = 256
MAX_SPLIT_BLOCKS = 1024
REFERENCE, DECODE, PREFILL = range(3)


class GpuStruct(ctypes.Structure):
    """``Gpu`` of common/gpu.h."""

    _fields_ = (
        ("compute_capability", c_int32),
        ("multiprocessors", c_int32),
        ("shared_bytes_per_block", c_int32),
        ("shared_bytes_per_multiprocessor", c_int32),
        ("l2_bytes", c_int64),
    )


class DecodePlan(ctypes.Structure):
    """``DecodePlan`` of attention/heuristics.h."""

    _fields_ = (("warps", c_int32), ("row_warps", c_int32), ("row_tiles", c_int32), ("splits", c_int32))


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of an attention op."""

    batch: int = 1
    sequence: int = 1
    capacity: int = 32768
    kv_heads: int = 4
    group: int = 7
    head_dim: int = 128
    sliding_window: int = 0
    dtype: str = "bfloat16"
    scale: float = 0.1

    def desc(self) -> AttentionDesc:
        heads = self.kv_heads * self.group
        sizes = (self.batch, self.sequence, self.capacity, heads, self.kv_heads, self.head_dim)
        return AttentionDesc(*sizes, self.sliding_window, BY_NAME[self.dtype].kernel_code, self.scale)

    @property
    def part_keys(self) -> int:
        """The fewest keys a part has."""
        return 16384 // self.head_dim


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the heuristics")
    path = tmp_path_factory.mktemp("plan") / "libplan.so"
    run_compiler(
        ["g++", "-std=c++17", "-shared", "-fPIC", *WARNINGS, *INCLUDES, str(SOURCE), "-o", str(path)]
    )
    library = ctypes.CDLL(str(path))
    library.decode_plan.restype = DecodePlan
    library.partial_blocks.restype = c_int64
    library.blocks_at_a_time.restype = c_int64
    return library


def plan(library: ctypes.CDLL, shape: Shape, gpu: Gpu) -> DecodePlan:
    return library.decode_plan(byref(shape.desc()), byref(GpuStruct(*dataclasses.astuple(gpu))))


def blocks_at_a_time(library: ctypes.CDLL, gpu: Gpu, warps: int) -> int:
    return library.blocks_at_a_time(byref(GpuStruct(*dataclasses.astuple(gpu))), warps)


def blocks(shape: Shape, made: DecodePlan) -> int:
    return shape.batch * shape.kv_heads * made.row_tiles * made.splits


SHAPES = st.builds(
    Shape,
    batch=st.integers(1, 700),
    sequence=st.integers(1, 16),
    capacity=st.integers(0, 200_000),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 24),
    head_dim=st.sampled_from([64, 128]),
    sliding_window=st.sampled_from([0, 1, 4096, 32768]),
)


class TestPlan:
    @given(SHAPES, st.sampled_from(sorted(GPUS)))
    def test_bounds(self, library: ctypes.CDLL, shape: Shape, gpu: str) -> None:
        """Parts are never smaller than is worthwhile, and what they leave fits the workspace."""
        made = plan(library, shape, GPUS[gpu])
        rows, tile = shape.group * shape.sequence, 16 * made.row_warps
        assert (made.row_tiles - 1) * tile < rows <= made.row_tiles * tile
        assert made.row_warps == (1 if rows <= 16 else 4)
        assert 1 <= made.splits <= max(1, min(MAX_SPLITS, shape.capacity // shape.part_keys))
        if made.splits > 1:
            assert blocks(shape, made) <= min(MAX_SPLIT_BLOCKS, library.partial_blocks(byref(shape.desc())))
        shared = made.warps * 3 * 8 * KIB
        assert shared <= GPUS[gpu].shared_bytes_per_block

    @given(SHAPES, st.data())
    def test_partial_results_never_fall(
        self, library: ctypes.CDLL, shape: Shape, data: st.DataObject
    ) -> None:
        """When batch, sequence or capacity grows, as kernels.h promises of the workspace."""
        field = data.draw(st.sampled_from(["batch", "sequence", "capacity"]))
        larger = dataclasses.replace(
            shape, **{field: getattr(shape, field) + data.draw(st.integers(1, 5000))}
        )
        counts = [library.partial_blocks(byref(each.desc())) for each in (shape, larger)]
        assert counts[0] <= counts[1]

    @pytest.mark.parametrize("gpu", GPUS)
    @pytest.mark.parametrize("kv_heads", [1, 2, 4, 8, 16])
    @pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 16), (2, 1), (5, 1), (5, 2)])
    def test_long_rows_fill_the_gpu(
        self, library: ctypes.CDLL, gpu: str, kv_heads: int, sequence: int, batch: int
    ) -> None:
        """At least five sixths of the time of all multiprocessors are used."""
        shape = Shape(kv_heads=kv_heads, sequence=sequence, batch=batch)
        made = plan(library, shape, GPUS[gpu])
        at_a_time = blocks_at_a_time(library, GPUS[gpu], made.warps)
        rounds = math.ceil(blocks(shape, made) / at_a_time)
        assert blocks(shape, made) >= 5 / 6 * rounds * at_a_time or made.splits == MAX_SPLITS

    def test_h200_by_hand(self, library: ctypes.CDLL) -> None:
        """7B, one row of 32k: 33 parts for each of 4 heads, a block of eight warps on each multiprocessor."""
        made = plan(library, Shape(), H200)
        assert (made.warps, made.row_warps, made.row_tiles, made.splits) == (8, 1, 1, 33)
        # 72B: 8 heads. 16 parts leave 4 of 132 multiprocessors idle.
        made = plan(library, Shape(kv_heads=8, group=8), H200)
        assert (made.warps, made.splits) == (8, 16)
        # 12 rows: two blocks of four warps fill a multiprocessor better than one of eight.
        made = plan(library, Shape(batch=12), H200)
        assert (made.warps, made.splits) == (4, 5)
        # Four speculative tokens of a group of 7 are 28 rows, whose warps share their keys.
        made = plan(library, Shape(sequence=4), H200)
        assert (made.warps, made.row_warps, made.row_tiles, made.splits) == (4, 4, 1, 66)

    @pytest.mark.parametrize("gpu", GPUS)
    @pytest.mark.parametrize("batch", [150, 255, 256, 300, 512, 4096])
    def test_a_full_gpu_splits_nothing(self, library: ctypes.CDLL, gpu: str, batch: int) -> None:
        assert plan(library, Shape(batch=batch), GPUS[gpu]).splits == 1

    def test_a_thin_last_round_is_made_thinner(self, library: ctypes.CDLL) -> None:
        """H200 runs 264 blocks at a time: of 272, 8 would run alone, after all others."""
        assert blocks_at_a_time(library, H200, 4) == 264
        assert plan(library, Shape(batch=68), H200).splits == 2  # 544 of them: rounds half as long
        assert plan(library, Shape(batch=66), H200).splits == 1  # one full round
        assert plan(library, Shape(batch=64), H200).splits == 1  # nearly
        assert plan(library, Shape(batch=100), H200).splits == 1  # twice as many in four rounds: no gain

    def test_short_caches_and_windows_are_not_split(self, library: ctypes.CDLL) -> None:
        assert plan(library, Shape(capacity=255), H200).splits == 1
        assert plan(library, Shape(capacity=256), H200).splits == 2
        assert plan(library, Shape(capacity=511, head_dim=64), H200).splits == 1
        assert plan(library, Shape(sliding_window=512), H200).splits == 4


class TestKernel:
    @pytest.mark.parametrize(
        ("changes", "kernel"),
        [
            ({}, DECODE),
            ({"sequence": 16}, DECODE),
            ({"sequence": 17}, PREFILL),
            ({"dtype": "float32"}, REFERENCE),
            ({"head_dim": 96}, REFERENCE),
            ({"scale": 0.0}, REFERENCE),
            ({"scale": -0.1}, REFERENCE),
            ({"scale": float("nan")}, REFERENCE),
            ({"capacity": 2**30 + 1}, REFERENCE),
        ],
    )
    def test_which(self, library: ctypes.CDLL, changes: dict[str, int | float | str], kernel: int) -> None:
        assert library.attention_kernel(byref(Shape(**changes).desc())) == kernel
