"""Rows of packed weights: every value exact, by the kernel and by the function body."""

from __future__ import annotations

from ctypes import byref
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from q2export.contracts import opspec
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops.functions import function_for
from tests.plugins.cpu.kernels import CpuKernels, KernelError, Packed, QuantizedGatherDesc, address
from tests.plugins.cpu.sessions import Node, initializer

F, F16, U8, I64 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "UINT8", "INT64"))
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero_points"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
@SYMMETRIC
def test_rows_are_exact(onnxruntime_library: Path, bits: int, block_size: int, symmetric: bool) -> None:
    weight = Packed.random((19, 3 * block_size), bits, block_size, symmetric)
    weight.scales[3] = [2**-24, -(2**-15), 65504]  # of the ends of the range, too
    scales = np.repeat(weight.scales.astype(np.float64), block_size, axis=1)
    reference = CpuKernels(onnxruntime_library)
    found = reference.quantized_gather(np.arange(19), weight)
    changed = np.arange(19) != 3
    np.testing.assert_array_equal(found[changed], weight.values[changed])
    steps = found[3] / scales[3]
    assert (steps == np.rint(steps)).all() and np.abs(steps).max() < 2**bits
    np.testing.assert_array_equal(
        reference.quantized_gather(np.array([18, 0, 18]), weight), found[[18, 0, 18]]
    )


@pytest.mark.parametrize("bits", [4, 8])
@SYMMETRIC
def test_in_onnx_runtime(onnxruntime_library: Path, bits: int, symmetric: bool) -> None:
    """On one thread and on two, with the library and without: the same bits."""
    weight = Packed.random((50, 96), bits, 32, symmetric)
    arrays = {"weight": (weight.codes, U8), "weight_scale": (weight.scales, F16)}
    if weight.zero_points is not None:
        arrays["weight_zero_point"] = (weight.zero_points, U8)
    node = Node(
        "Q2QuantizedGather",
        ["indices", *arrays],
        [initializer(name, *each) for name, each in arrays.items()],
        {"indices": I64},
        {"output": F},
        {"bits": bits, "block_size": 32},
    )
    body = function_for(opspec.QUANTIZED_GATHER, scheme=Scheme(bits, 32, symmetric))
    indices = np.random.default_rng(0).integers(0, 50, (3, 190))
    for session in (
        node.session(onnxruntime_library),
        node.session(onnxruntime_library, 2),
        replace(node, functions=[body]).session(None),
    ):
        (found,) = session.run(None, {"indices": indices})
        np.testing.assert_array_equal(found, weight.values[indices].astype(np.float32))
        (none,) = session.run(None, {"indices": indices[:0]})
        assert none.shape == (0, 190, 96)
    with pytest.raises(Exception, match=r"an index is 50, expected 0 \.\. 49"):
        node.session(onnxruntime_library).run(None, {"indices": np.array([[3, 50]])})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("columns", 33, "columns is 33, expected a multiple of 32"),
        ("block_size", 16, "block_size is 16, expected 32, 64 or 128"),
        ("rows", 0, "rows is 0, expected 1 .. 2147483647"),
    ],
)
def test_refuses(onnxruntime_library: Path, field: str, value: int, message: str) -> None:
    kernels, ones = CpuKernels(onnxruntime_library), address(np.ones(64, np.float32))
    desc = QuantizedGatherDesc(1, 1, 64, 4, 32)
    setattr(desc, field, value)
    with pytest.raises(KernelError, match=f"quantized_gather: {message}"):
        kernels.check(
            kernels.library.q2export_cpu_quantized_gather(byref(desc), ones, ones, ones, None, ones, None)
        )
