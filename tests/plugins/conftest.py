"""What the tests of the C++ plugins share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.host_cuda import sanitizers
from tests.host_cuda.compiling import RACES, ROOT, SANITIZED, compile_for_host
from tests.plugins.kernels import Kernels


@pytest.fixture(scope="session")
def headers() -> Path:
    """The folder of TensorRT's headers: TENSORRT_ROOT's, or what CMake fetched."""
    fetched = sorted((ROOT / "build" / "plugins").glob("tensorrt-*"))
    for root in [Path(os.environ.get("TENSORRT_ROOT", ROOT / "absent")), *fetched]:
        if (root / "include" / "NvInferRuntime.h").is_file():
            return root / "include"
    pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT, or run cmake -S plugins -B build/plugins")


@pytest.fixture(scope="session")
def host_kernels() -> Path:
    """All kernels, compiled for the host."""
    return compile_for_host("libq2export_kernels.so")


@pytest.fixture(scope="session")
def kernels(host_kernels: Path) -> Kernels:
    """Their functions, on tensors."""
    return Kernels(host_kernels)


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random tensors in every test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sanitized_kernels() -> Path:
    """The same under AddressSanitizer and UBSan; for processes of :func:`~tests.host_cuda.sanitizers.run`."""
    sanitizers.library("libasan.so")
    return compile_for_host("libsanitized.so", SANITIZED)


@pytest.fixture(scope="session")
def race_checked_kernels() -> Path:
    """The same, aborting at the first data race; for processes of their own."""
    return compile_for_host("libraces.so", RACES)
