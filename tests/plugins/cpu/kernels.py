"""The CPU kernels of ``plugins/csrc/cpu``, called through their C ABI on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import byref, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
"""``q2export_dtype``."""

ISAS = {"portable": 0, "avx2": 1, "avx512": 2}
"""``q2export_cpu_isa``."""

Floats = NDArray[np.float32]


class LinearDesc(ctypes.Structure):
    """``q2export_cpu_linear_desc``."""

    _fields_ = (
        ("rows", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("weight_dtype", c_int32),
        ("bias_dtype", c_int32),
    )


class ParallelFor(ctypes.Structure):
    """``q2export_cpu_parallel_for``."""

    _fields_ = (("run", c_void_p), ("context", c_void_p))


class KernelError(Exception):
    """A kernel function refused; the message is that of ``q2export_cpu_last_error``."""


def address(array: NDArray[np.generic] | None) -> c_void_p | None:
    """Where an array's elements are."""
    return None if array is None else c_void_p(array.ctypes.data)


def stored(values: Floats, dtype: int) -> NDArray[np.generic]:
    """Values rounded to an element type, as it lies in memory."""
    if dtype == FLOAT32:
        return values
    if dtype == FLOAT16:
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(array: NDArray[np.generic], dtype: int) -> Floats:
    """What the elements of :func:`stored` mean."""
    if dtype == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def at_odd_address(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same bytes two bytes behind a cache line, as a checkpoint may have them, and nothing after them."""
    buffer = np.empty(array.nbytes + 66, np.uint8)
    start = -buffer.ctypes.data % 64 + 2
    found = buffer[start : start + array.nbytes]
    found[:] = array.reshape(-1).view(np.uint8)
    return found


class CpuKernels:
    """The functions of ``cpu.h``; each returns new arrays and leaves its arguments alone."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_cpu_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        """Raise what a status other than 0 stands for."""
        if status:
            raise KernelError(self.library.q2export_cpu_last_error().decode())

    def select(self, isa: str) -> bool:
        """Use an instruction set from now on; false where the machine lacks it."""
        return bool(self.library.q2export_cpu_select_isa(ISAS[isa]) == 0)

    def linear(
        self,
        x: Floats,
        weight: NDArray[np.generic],
        out_features: int,
        dtype: int,
        bias: NDArray[np.generic] | None = None,
        bias_dtype: int = FLOAT32,
    ) -> Floats:
        """``x @ weight.T + bias``; x ``[rows, in]``, weight the bytes of ``[out, in]``."""
        x = np.ascontiguousarray(x)
        output = np.full((x.shape[0], out_features), np.nan, np.float32)
        desc = LinearDesc(*x.shape, out_features, dtype, bias_dtype)
        pointers = map(address, (x, weight, bias, output))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, None))
        return output

    def linear_into(self, output: Floats, x: Floats, weight: Floats, run: ctypes._FuncPointer) -> None:
        """:meth:`linear` of float32, its tasks given to ``run``."""
        desc = LinearDesc(*x.shape, weight.shape[0], FLOAT32, FLOAT32)
        pool = ParallelFor(ctypes.cast(run, c_void_p), None)
        pointers = map(address, (x, weight, None, output))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, byref(pool)))

    def refused_linear(self, change: Mapping[str, int | None]) -> None:
        """:meth:`linear` of a few ones, but for one argument."""
        ones = np.ones(64, np.float32)
        fields: dict[str, int | None] = {"rows": 2, "in_features": 3, "out_features": 4, **change}
        weight = None if "weight" in fields else ones
        fields.pop("weight", None)
        desc = LinearDesc(**fields)
        pointers = map(address, (ones, weight, None, np.ones(64, np.float32)))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, None))
