"""Probes of kernels, compiled by nvcc for the GPU at hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.host_cuda.compiling import INCLUDES, run_compiler


def compile_for_gpu(sources: Sequence[Path], folder: Path) -> Path:
    """Compile sources into a library in ``folder``; skips the test that lacks a GPU or a compiler."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and PyTorch with CUDA")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    is_hopper = torch.cuda.get_device_capability() == (9, 0)
    target = "-gencode=arch=compute_90a,code=sm_90a" if is_hopper else "-arch=native"
    output = folder / "libprobes.so"
    flags = ["-std=c++17", "-O3", target, "-shared", "--threads", "0", "-Xcompiler", "-fPIC", *INCLUDES]
    run_compiler(["nvcc", *flags, *map(str, sources), "-o", str(output)])
    return output
