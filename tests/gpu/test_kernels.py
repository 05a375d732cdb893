"""The kernels on a GPU, by the tests that the host passes, and in a CUDA graph."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_void_p

import torch

from q2export.plugins.tensorrt.kernels import MoeDesc
from tests.plugins.kernels import DTYPES, Kernels, pointers
from tests.plugins.test_csrc_kernels import TestAttention, TestMoe, TestRotary, experts

__all__ = ["TestAttention", "TestMoe", "TestRotary"]


def test_a_graph_captures_and_replays_the_moe(kernels: Kernels) -> None:
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
