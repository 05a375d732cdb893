"""The kernels compiled for the GPU at hand; without one, every test here says what it lacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from q2export.plugins.tensorrt import kernels as bindings
from tests.gpu.compiling import kernels_for_gpu
from tests.plugins.kernels import Kernels


@pytest.fixture(scope="session")
def gpu_library() -> Path:
    """``libq2export_kernels.so`` for this GPU alone."""
    return kernels_for_gpu()


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


@pytest.fixture(autouse=True)
def end_with_the_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an illegal access every later call of the process fails: end it, so that no other test is blamed.

    Under pytest-xdist the test counts as having crashed its worker, and another worker does the rest.
    """
    yield
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        message = f"{request.node.nodeid} broke the CUDA context: {str(error).splitlines()[0]}"
        if "PYTEST_XDIST_WORKER" in os.environ:
            sys.stderr.write(f"{message}\n")
            os._exit(1)
        pytest.exit(message, returncode=1)
