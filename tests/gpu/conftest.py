"""The kernels compiled for the GPU at hand; without one, every test here says what it lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from q2export.plugins.kernel_build import (
    ARCHITECTURES_VARIABLE,
    KernelLibrary,
    NoKernelsError,
    available_cores,
    plan,
)
from q2export.plugins.tensorrt import kernels as bindings
from tests.host_cuda.compiling import ROOT
from tests.plugins.kernels import Kernels


@pytest.fixture(scope="session")
def gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``libq2export_kernels.so`` for this GPU alone."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and PyTorch with CUDA")
    major, minor = torch.cuda.get_device_capability()
    try:
        chosen = plan({**os.environ, ARCHITECTURES_VARIABLE: f"{major}{minor}"})
    except NoKernelsError as reason:
        pytest.skip(f"needs nvcc: {reason}")
    library = KernelLibrary(chosen.compiler, chosen.architectures, ROOT / "build" / "kernels")
    output = tmp_path_factory.mktemp("kernels") / "libq2export_kernels.so"
    library.build(output, available_cores())
    return output


@pytest.fixture(scope="session")
def kernels(gpu_library: Path) -> Kernels:
    """The functions of the C ABI, on tensors that are moved to the GPU and back."""
    return Kernels(gpu_library, "cuda")


@pytest.fixture(scope="session")
def operators(gpu_library: Path) -> Iterator[None]:
    """``torch.ops.q2export`` on the GPU."""
    from q2export.plugins.tensorrt.torch_ops import register

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bindings, "LIBRARY", gpu_library)
        register()
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random tensors in every test, whatever ran before."""
    torch.manual_seed(0)
