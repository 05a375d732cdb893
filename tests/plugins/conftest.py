"""What the tests of the C++ plugins share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.plugins import sanitizers
from tests.plugins.host_kernels import RACES, ROOT, SANITIZED, compile_once


@pytest.fixture(scope="session")
def headers() -> Path:
    """The folder of TensorRT's headers: TENSORRT_ROOT's, or what CMake fetched."""
    fetched = sorted((ROOT / "build" / "plugins").glob("tensorrt-*"))
    for root in [Path(os.environ.get("TENSORRT_ROOT", ROOT / "absent")), *fetched]:
        if (root / "include" / "NvInferRuntime.h").is_file():
            return root / "include"
    pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT, or run cmake -S plugins -B build/plugins")


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels")
    return compile_once(tmp_path_factory, "libq2export_kernels.so")


@pytest.fixture(scope="session")
def sanitized_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under AddressSanitizer and UBSan; for processes of :func:`~tests.plugins.sanitizers.run`."""
    sanitizers.library("libasan.so")
    return compile_once(tmp_path_factory, "libsanitized.so", SANITIZED)


@pytest.fixture(scope="session")
def race_checked_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, aborting at the first data race; for processes of their own."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels")
    return compile_once(tmp_path_factory, "libraces.so", RACES)
