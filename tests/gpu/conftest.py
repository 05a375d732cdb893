"""The kernels compiled for the GPU at hand; without one, every test here says what it lacks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from q2export.plugins.python import kernels as bindings
from tests.plugins.host_kernels import INCLUDES, KERNEL_SOURCES, HostKernels, run_compiler


@pytest.fixture(scope="session")
def gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``libq2export_kernels.so`` for this GPU alone."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and PyTorch with CUDA")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    output = tmp_path_factory.mktemp("kernels") / "libq2export_kernels.so"
    flags = [
        "-std=c++17",
        "-O3",
        "-arch=native",
        "-shared",
        "--threads",
        "0",
        "-Xcompiler",
        "-fPIC",
        *INCLUDES,
    ]
    run_compiler(["nvcc", *flags, *map(str, KERNEL_SOURCES), "-o", str(output)])
    return output


@pytest.fixture(scope="session")
def kernels(gpu_library: Path) -> HostKernels:
    """The functions of the C ABI, on tensors that are moved to the GPU and back."""
    return HostKernels(gpu_library, "cuda")


@pytest.fixture(scope="session")
def operators(gpu_library: Path) -> Iterator[None]:
    """``torch.ops.q2export`` on the GPU."""
    from q2export.plugins.python.torch_ops import register

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bindings, "LIBRARY", gpu_library)
        register()
        yield
