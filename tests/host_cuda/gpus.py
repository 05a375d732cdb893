"""What tests may set of the machine that the host mapping pretends to be."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Gpu:
    """``q2export::Gpu``, for the heuristics and the limits of launches."""

    compute_capability: int
    multiprocessors: int
    shared_bytes_per_block: int
    shared_bytes_per_multiprocessor: int
    l2_bytes: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the data sheets.
A100 = Gpu(80, 108, 163 * KIB, 164 * KIB, 40 * MIB)
L4 = Gpu(89, 58, 99 * KIB, 100 * KIB, 48 * MIB)
RTX_4090 = Gpu(89, 128, 99 * KIB, 100 * KIB, 72 * MIB)
H200 = Gpu(90, 132, 227 * KIB, 228 * KIB, 50 * MIB)
RTX_5090 = Gpu(120, 170, 99 * KIB, 100 * KIB, 96 * MIB)


@contextmanager
def pretending(library: ctypes.CDLL, gpu: Gpu) -> Iterator[None]:
    """Have the kernels of a host library launched on another GPU than an H200."""
    library.host_cuda_set_gpu(*astuple(gpu))
    try:
        yield
    finally:
        library.host_cuda_set_gpu(*astuple(H200))


@contextmanager
def thread_order(library: ctypes.CDLL, seed: int) -> Iterator[None]:
    """Have warps and their lanes take turns in another order; 0 is the usual one."""
    library.host_cuda_set_seed(seed)
    try:
        yield
    finally:
        library.host_cuda_set_seed(0)
