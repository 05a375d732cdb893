"""Times on a GPU: launches captured in a CUDA graph, over more inputs than the L2 cache holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

COLD_FACTOR = 3
"""The input sets of a case together are this many times the L2 cache, so that each launch finds it cold."""


def sets_needed(bytes_per_set: int, l2_bytes: int, at_most: int = 64) -> int:
    """Number of input sets that makes every launch read from memory."""
    return max(2, min(at_most, -(-COLD_FACTOR * l2_bytes // max(1, bytes_per_set))))


class Timer(Protocol):
    """Times launches."""

    def microseconds(self) -> float:
        """Time of one launch."""
        ...


def make_timer(launches: Sequence[Callable[[], object]], device: torch.device) -> Timer:
    """The timer for a device: a CUDA graph, or on the CPU a clock, which tells nothing of a GPU's kernels."""
    return GraphTimer(launches) if device.type == "cuda" else HostTimer(launches)


class HostTimer:
    """Launches one after the other."""

    def __init__(self, launches: Sequence[Callable[[], object]]) -> None:
        self._launches = launches

    def microseconds(self) -> float:
        """Time of one launch, from one turn of all."""
        start = time.perf_counter()
        for launch in self._launches:
            launch()
        return (time.perf_counter() - start) * 1e6 / len(self._launches)


class GraphTimer:
    """Launches over all input sets as one CUDA graph."""

    def __init__(self, launches: Sequence[Callable[[], object]]) -> None:
        self._count = len(launches)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, loads, allocates: none of that can be captured
            for launch in launches[:2]:
                for _ in range(3):
                    launch()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for launch in launches:
                launch()

    def microseconds(self) -> float:
        """Time of one launch, from one replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        elapsed: float = start.elapsed_time(end)
        return elapsed * 1000 / self._count


def interleaved_medians(timers: Mapping[str, Timer], rounds: int) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of every contestant, which take turns; the first round is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds + 1):
        for name, timer in timers.items():
            measured = timer.microseconds()
            if turn:
                samples[name].append(measured)
    return {
        name: {"median_us": statistics.median(found), "min_us": min(found), "max_us": max(found)}
        for name, found in samples.items()
    }


def copy_bandwidth(device: torch.device, rounds: int = 20, size: int = 2 << 30) -> float:
    """Bytes per second of a copy of ``size`` bytes on the device, bytes read and written both counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timer = make_timer([lambda: target.copy_(source)], device)
    median = statistics.median(timer.microseconds() for _ in range(rounds))
    return 2 * source.numel() / median * 1e6


def matrix_peak(device: torch.device, dtype: torch.dtype, rounds: int = 20, size: int = 8192) -> float:
    """Operations per second of a product of two random matrices of ``size`` x ``size`` (cuBLAS)."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timer = make_timer([lambda: a @ b], device)
    median = statistics.median(timer.microseconds() for _ in range(rounds))
    return 2 * size**3 / median * 1e6
