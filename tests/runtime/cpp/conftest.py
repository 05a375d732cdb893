"""The C++ library, built from the sources of this tree, and engines of the trained checkpoints."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import EngineLibrary, NoKernelsError, engine_library
from tests.host_cuda.compiling import ROOT
from tests.runtime.cpp.binding import Library

BUILD = ROOT / "build" / "cpp"
CPP = ROOT / "runtime" / "cpp"


@pytest.fixture(scope="session")
def engine_build() -> EngineLibrary:
    """How the library is built here."""
    try:
        library = engine_library({**os.environ, "Q2EXPORT_CPP": ""}, BUILD, CPP)
        return replace(library, extra=("-O1",))  # as fast as need be, and a third less to compile
    except NoKernelsError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def prefix(engine_build: EngineLibrary) -> Path:
    """The CMake prefix, again only what has changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine_build.install(BUILD / "prefix", 2)
    return BUILD / "prefix"


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """That of the Python package."""
    module = import_module("onnxruntime")
    (found,) = Path(str(module.__file__)).parent.glob("capi/libonnxruntime.so.*")
    return found


@pytest.fixture(scope="session")
def library(prefix: Path, onnxruntime_library: Path) -> Library:
    """The library through ctypes."""
    from q2export.plugins.kernel_build import CPU_LIBRARY

    if not CPU_LIBRARY.is_file():
        pytest.skip(f"needs {CPU_LIBRARY}: python -m q2export.plugins.kernel_build cpu")
    return Library(prefix / "lib" / "libq2export.so", onnxruntime_library, CPU_LIBRARY)
