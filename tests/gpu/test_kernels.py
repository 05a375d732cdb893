"""The kernels on a GPU, by the tests that the host passes."""

from __future__ import annotations

import ctypes
import shutil
from ctypes import byref, c_size_t, c_void_p

import pytest
import torch

from q2export.plugins.python.kernels import MoeDesc
from tests.plugins.host_kernels import (
    DTYPES,
    INCLUDES,
    KERNEL_SOURCES,
    HostKernels,
    pointers,
    run_compiler,
)
from tests.plugins.test_csrc_kernels import TestAttention, TestMoe, TestRotary, experts, seed

__all__ = ["TestAttention", "TestMoe", "TestRotary", "seed"]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and PyTorch with CUDA")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    output = tmp_path_factory.mktemp("kernels") / "libq2export_kernels.so"
    flags = ["-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC", *INCLUDES]
    run_compiler(["nvcc", *flags, *map(str, KERNEL_SOURCES), "-o", str(output)])
    return HostKernels(output, "cuda")


def test_a_graph_captures_and_replays_the_moe(kernels: HostKernels) -> None:
    """It neither allocates nor synchronises, and keeps no pointer to the host's arrays of experts."""
    hidden, logits = torch.randn(5, 24), torch.randn(5, 130)
    weights = experts(130, 24, 10, torch.float32)
    expected = kernels.moe(hidden, logits, weights, 3, True)

    inputs = kernels.moved([torch.zeros_like(hidden), logits])
    on_device = [kernels.moved(kind) for kind in weights]
    output = torch.zeros_like(inputs[0])
    desc = MoeDesc(5, 24, 10, 130, 3, 1, DTYPES[torch.float32])
    workspace = kernels.workspace("moe", desc)
    arrays = [(c_void_p * 130)(*pointers(*kind)) for kind in on_device]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        tail = (*pointers(output, workspace), c_size_t(len(workspace)), stream)
        kernels.check(kernels.library.q2export_moe(byref(desc), *pointers(*inputs), *arrays, *tail))
    for array in arrays:
        ctypes.memset(array, 0, ctypes.sizeof(array))
    inputs[0].copy_(hidden)
    graph.replay()
    assert torch.equal(output.cpu(), expected)
