"""The host mapping of CUDA that the tests of the kernels stand on: warps, barriers, copies, tensor cores."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_float, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.host_cuda.compiling import CSRC, compile_for_host
from tests.host_cuda.gpus import RTX_4090, pretending, thread_order

SOURCES = [*sorted(CSRC.glob("kernels/common/*.cu")), Path(__file__).with_name("probes.cu")]
SEEDS = range(8)


class Probes:
    """The functions of ``probes.cu``, on arrays and tensors."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_last_error.restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments: object) -> None:
        """Run one.

        Raises:
            RuntimeError: it refused; the message is its own.
        """
        status = getattr(self.library, f"probe_{name}")(*map(self.converted, arguments))
        if status:
            raise RuntimeError(self.library.q2export_last_error().decode())

    @staticmethod
    def converted(argument: object) -> object:
        if isinstance(argument, Tensor):
            return c_void_p(argument.data_ptr())
        if isinstance(argument, np.ndarray):
            return c_void_p(argument.ctypes.data)
        return c_float(argument) if isinstance(argument, float) else argument


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes(compile_for_host("libprobes.so", sources=SOURCES))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def bits(matrix: Tensor) -> NDArray[np.uint32]:
    """The bits of 16-bit elements, ready to be shifted."""
    return matrix.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)


def registers(matrix: Tensor, tiles: list[tuple[int, int]]) -> NDArray[np.uint32]:
    """Fragments of 8x8 tiles, by their first row and column: [lanes, tiles], row by row.

    Lane i holds elements 2 * (i % 4) and the next one of row i / 4, as the PTX ISA draws it.
    """
    elements = bits(matrix)
    fragments = np.zeros((32, len(tiles)), dtype=np.uint32)
    for tile, (row, column) in enumerate(tiles):
        for lane in range(32):
            low, high = elements[row + lane // 4, column + lane % 4 * 2 :][:2]
            fragments[lane, tile] = low | high << 16
    return fragments


def in_fragments(matrix: Tensor) -> Tensor:
    """A float accumulator [16, 8] by lane: [32, 4]."""
    rows = torch.arange(32) // 4
    columns = torch.arange(32) % 4 * 2
    tiles = [matrix[rows + row, columns + column] for row in (0, 8) for column in (0, 1)]
    return torch.stack(tiles, dim=1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
class TestMma:
    def test_equals_a_matrix_product(self, probes: Probes, dtype: torch.dtype) -> None:
        for _ in range(5):
            a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
            accumulator = in_fragments(c)
            a_registers = registers(a, [(0, 0), (8, 0), (0, 8), (8, 8)])
            b_registers = registers(b.T, [(0, 0), (0, 8)])
            probes("mma", int(dtype == torch.bfloat16), a_registers, b_registers, accumulator)
            expected = in_fragments((c.double() + a.double() @ b.double()).float())
            torch.testing.assert_close(accumulator, expected, rtol=0, atol=1e-5)

    def test_takes_every_element_to_float_exactly(self, probes: Probes, dtype: torch.dtype) -> None:
        """Each 16-bit pattern in a column of its own, times one."""
        patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        b = torch.zeros(16, 8, dtype=dtype)
        b[0, 0] = 1.0
        b_registers = registers(b.T, [(0, 0), (0, 8)])
        for chunk in patterns[:: 65536 // 1024].split(16):
            a = torch.zeros(16, 16, dtype=dtype)
            a[:, 0] = chunk
            accumulator = torch.zeros(32, 4)
            a_registers = registers(a, [(0, 0), (8, 0), (0, 8), (8, 8)])
            probes("mma", int(dtype == torch.bfloat16), a_registers, b_registers, accumulator)
            column = torch.cat((accumulator[::4, 0], accumulator[::4, 2]))
            torch.testing.assert_close(column, chunk.float(), rtol=0, atol=0, equal_nan=True)


X4, X4_TRANSPOSED, X2 = range(3)


class TestLoadMatrix:
    def load(
        self, probes: Probes, kind: int, matrix: Tensor, rows: list[tuple[int, int]]
    ) -> NDArray[np.uint32]:
        """Load the 8-element rows that begin at (row, column) of the matrix, in shared memory."""
        matrix = aligned(matrix)
        offsets = np.array([(row * matrix.shape[1] + column) * 2 for row, column in rows], dtype=np.int32)
        result = np.zeros((32, 4), dtype=np.uint32)
        probes("load_matrix", kind, matrix, matrix.numel() * 2, offsets, result)
        return result

    def test_four_matrices(self, probes: Probes) -> None:
        matrix = torch.randn(16, 24).half()
        tiles = [(0, 0), (8, 16), (8, 0), (0, 8)]
        rows = [(row + i, column) for row, column in tiles for i in range(8)]
        assert (self.load(probes, X4, matrix, rows) == registers(matrix, tiles)).all()

    def test_rows_come_from_anywhere(self, probes: Probes) -> None:
        matrix = torch.randn(40, 8).half()
        order = torch.randperm(40)[:32]
        loaded = self.load(probes, X4, matrix, [(int(row), 0) for row in order])
        assert (loaded == registers(matrix[order], [(0, 0), (8, 0), (16, 0), (24, 0)])).all()

    def test_transposed(self, probes: Probes) -> None:
        matrix = torch.randn(16, 16).half()
        tiles = [(0, 0), (8, 0), (0, 8), (8, 8)]
        rows = [(row + i, column) for row, column in tiles for i in range(8)]
        loaded = self.load(probes, X4_TRANSPOSED, matrix, rows)
        assert (loaded == registers(matrix.T, [(column, row) for row, column in tiles])).all()

    def test_two_matrices(self, probes: Probes) -> None:
        matrix = torch.randn(8, 16).half()
        rows = [(i % 8, i // 8 % 2 * 8) for i in range(32)]
        loaded = self.load(probes, X2, matrix, rows)
        assert (loaded[:, :2] == registers(matrix, [(0, 0), (0, 8)])).all()


def aligned(tensor: Tensor) -> Tensor:
    """A copy at a multiple of 16 bytes."""
    storage = torch.empty(tensor.numel() + 16, dtype=tensor.dtype)
    start = -storage.data_ptr() % 16 // tensor.element_size()
    copy = storage[start : start + tensor.numel()].view(tensor.shape)
    return copy.copy_(tensor)


class TestAsynchronousCopies:
    def test_arrive_with_the_wait_for_their_group(self, probes: Probes) -> None:
        source = aligned(torch.arange(16, dtype=torch.float32) + 1)
        seen = torch.zeros(5, 4)
        probes("copy", source, seen)
        nan = float("nan")
        expected = [
            [nan, nan, nan, nan],
            [1.0, nan, nan, nan],
            [1.0, 5.0, nan, nan],
            [1.0, 5.0, 9.0, nan],
            [1.0, 5.0, 9.0, 0.0],  # the last one is not valid: zeros
        ]
        torch.testing.assert_close(seen, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)

    def test_without_a_commit_belong_to_no_group(self, probes: Probes) -> None:
        seen = torch.zeros(2)
        probes("uncommitted_copy", aligned(torch.full((4,), 3.0)), seen)
        assert seen[0].isnan() and seen[1] == 3.0


class TestWarp:
    @pytest.mark.parametrize("width", [32, 16, 4])
    @pytest.mark.parametrize("argument", [0, 1, 3, 8, 17])
    def test_operations(self, probes: Probes, width: int, argument: int) -> None:
        values = np.random.default_rng(argument).integers(-4, 4, 32, dtype=np.int32)
        results = np.zeros((12, 32), dtype=np.int32)
        probes("warp", values, argument, width, results)
        lanes = np.arange(32)
        first = lanes // width * width
        sources = {
            "shfl": first + argument % width,
            "xor": np.where((lanes ^ argument) >= first + width, lanes, lanes ^ argument),
            "up": np.where(lanes - argument < first, lanes, lanes - argument),
            "down": np.where(lanes + argument >= first + width, lanes, lanes + argument),
        }
        for row, source in enumerate(sources.values()):
            assert (results[row] == values[source]).all(), list(sources)[row]

        def mask(chosen: NDArray[np.bool_]) -> int:
            return sum(1 << int(lane) for lane in lanes[chosen])

        uniform = [(values == 3).any(), True, values.sum(), values.max(), values.min()]
        assert (results[5:10] == np.array(uniform)[:, None]).all()
        masks = results.view(np.uint32)
        assert (masks[4] == mask(values > 0)).all()
        assert masks[10].tolist() == [mask(values == value) for value in values]
        assert (results[11] == values[np.where(lanes < 16, lanes ^ 1, lanes ^ 2)]).all()

    def test_pairs_and_powers(self, probes: Probes) -> None:
        for low, high in [(1.5, -2.25), (-3.3, 1e-7), (0.1, 70000.0), (-200.0, 5e-41), (float("-inf"), 0.0)]:
            packed, unpacked = np.zeros(2, np.uint32), torch.zeros(5)
            probes("pack", low, high, packed, unpacked)
            pair = torch.tensor([low, high])
            for register, dtype in zip(packed, (torch.float16, torch.bfloat16), strict=True):
                first, second = bits(pair.to(dtype))
                assert register == first | second << 16
            torch.testing.assert_close(unpacked[:2], pair.half().float(), rtol=0, atol=0)
            torch.testing.assert_close(unpacked[2:4], pair.bfloat16().float(), rtol=0, atol=0)
            torch.testing.assert_close(unpacked[4], torch.tensor(0.0 if low < -126 else 2.0**low))


class TestBlock:
    def test_indices(self, probes: Probes) -> None:
        numbers = np.zeros((3, 2, 5, 7), dtype=np.int32)
        probes("index", 5, 2, 3, 7, numbers)
        assert (numbers.ravel() == np.arange(numbers.size)).all()

    def test_barriers_that_count(self, probes: Probes) -> None:
        values = np.zeros((3, 96), dtype=np.int32)
        values[0, ::7] = 1
        values[1] = 1
        counts = np.zeros_like(values)
        probes("count", values, 3, 96, counts)
        expected = [
            (values[b] > 0).sum() * 4 + (values[b] > 0).any() * 2 + (values[b] > 0).all() for b in range(3)
        ]
        assert (counts == np.array(expected)[:, None]).all()

    def test_the_order_of_threads_varies(self, probes: Probes) -> None:
        orders = set()
        for order_seed in SEEDS:
            order = np.zeros(128, dtype=np.int32)
            with thread_order(probes.library, order_seed):
                probes("order", 128, np.zeros(1, dtype=np.int32), order)
            assert sorted(order) == list(range(128))
            orders.add(tuple(order))
        assert len(orders) > len(SEEDS) / 2
        assert {order[0] // 32 for order in orders} >= {0, 3}, (
            "some begin with the first warp, some with the last"
        )

    @pytest.mark.parametrize(
        ("kernel", "blocks", "threads"),
        [("reverse", 1, 64), ("reverse", 3, 33), ("broadcast", 1, 96), ("exchange", 1, 32)],
    )
    def test_a_missing_barrier_gives_a_wrong_result(
        self, probes: Probes, kernel: str, blocks: int, threads: int
    ) -> None:
        thread = torch.arange(threads)
        source = {"reverse": threads - 1 - thread, "broadcast": thread % 32, "exchange": thread // 2}[kernel]
        wrong = 0
        for order_seed, barrier in itertools.product(SEEDS, (1, 0)):
            x = torch.randn(blocks * threads)  # static shared memory keeps what the last launch left there
            y = torch.zeros_like(x)
            expected = x.view(blocks, threads)[:, source].flatten()
            with thread_order(probes.library, order_seed):
                probes(kernel, barrier, x, blocks, threads, y)
            is_right = torch.equal(y, expected)
            assert is_right or not barrier
            wrong += not is_right
        assert wrong >= len(SEEDS) / 4


class TestDevice:
    def test_shared_memory_needs_an_opt_in(self, probes: Probes) -> None:
        probes("shared_limit", 48 * 1024, 0)
        with pytest.raises(RuntimeError, match="invalid argument"):
            probes("shared_limit", 48 * 1024 + 1, 0)
        probes("shared_limit", 227 * 1024, 1)
        with pytest.raises(RuntimeError, match="invalid argument"):
            probes("shared_limit", 227 * 1024 + 1, 1)

    def test_another_gpu(self, probes: Probes) -> None:
        with pretending(probes.library, RTX_4090):
            probes("shared_limit", 99 * 1024, 1)
            with pytest.raises(RuntimeError, match="invalid argument"):
                probes("shared_limit", 100 * 1024, 1)
        probes("shared_limit", 100 * 1024, 1)
