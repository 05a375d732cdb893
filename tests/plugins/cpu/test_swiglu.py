"""SwiGLU on the CPU, with every instruction set of the machine."""

from __future__ import annotations

from ctypes import c_int64
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.plugins.cpu.kernels import CpuKernels, KernelError, address
from tests.plugins.cpu.sessions import Node

F = onnx.TensorProto.FLOAT


def expected(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    wide = gate.astype(np.float64)
    return wide / (1 + np.exp(-wide)) * up


@pytest.mark.parametrize("count", [1, 7, 16, 33, 16384, 40001])
def test_swiglu(kernels: CpuKernels, count: int) -> None:
    rng = np.random.default_rng(count)
    gate, up = 4 * rng.standard_normal(count, np.float32), rng.standard_normal(count, np.float32)
    found = kernels.swiglu(gate, up)
    np.testing.assert_allclose(found, expected(gate, up), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(kernels.swiglu(gate[-1:], up[-1:]), found[-1:])


def test_the_ends_of_the_range(kernels: CpuKernels) -> None:
    gate = np.array([-3e38, -100, -88, 0, 88, 100, 3e38], np.float32)
    found = kernels.swiglu(gate, np.ones_like(gate))
    np.testing.assert_allclose(found, np.where(gate > 0, gate, 0), rtol=1e-6, atol=1e-30)
    lost = kernels.swiglu(np.array([np.nan, 1, np.inf], np.float32), np.array([1, np.nan, 1], np.float32))
    np.testing.assert_array_equal(lost, np.array([np.nan, np.nan, np.inf], np.float32))


def test_refused(kernels: CpuKernels) -> None:
    ones = np.ones(4, np.float32)
    with pytest.raises(KernelError, match="swiglu: up is a null pointer"):
        kernels.check(
            kernels.library.q2export_cpu_swiglu(c_int64(4), address(ones), None, address(ones), None)
        )
    with pytest.raises(KernelError, match="swiglu: count is -1"):
        kernels.check(kernels.library.q2export_cpu_swiglu(c_int64(-1), None, None, None, None))


def test_in_onnx_runtime(onnxruntime_library: Path) -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 5, 33), np.float32), rng.standard_normal((2, 5, 33), np.float32)
    session = Node("Q2SwiGLU", ["gate", "up"], [], {"gate": F, "up": F}, {"output": F}).session(
        onnxruntime_library
    )
    (found,) = session.run(None, {"gate": gate, "up": up})
    np.testing.assert_allclose(found, expected(gate, up), rtol=1e-6, atol=1e-7)
    with pytest.raises(Exception, match=r"up has shape \[2, 33\], expected \[2, 5, 33\]"):
        session.run(None, {"gate": gate, "up": up[:, 0]})
