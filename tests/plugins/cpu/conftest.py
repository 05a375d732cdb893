"""The library of custom ops, built from the sources of this tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import CpuLibrary, NoKernelsError, cpu_library
from tests.plugins.cpu.compiling import BUILD, built
from tests.plugins.cpu.kernels import ISAS, CpuKernels


@pytest.fixture(scope="session")
def cpu_build() -> CpuLibrary:
    """How the library is built here."""
    try:
        return cpu_library({**os.environ, "Q2EXPORT_CPU_KERNELS": ""}, BUILD / "cpu")
    except NoKernelsError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def onnxruntime_library(cpu_build: CpuLibrary) -> Path:
    """``libq2export_onnxruntime.so``, again only what has changed."""
    return built(cpu_build, BUILD / "cpu")


@pytest.fixture(params=list(ISAS))
def kernels(request: pytest.FixtureRequest, onnxruntime_library: Path) -> Iterator[CpuKernels]:
    """The kernels, with each instruction set that this machine has."""
    found = CpuKernels(onnxruntime_library)
    best = found.library.q2export_cpu_selected_isa()
    if not found.select(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield found
    found.library.q2export_cpu_select_isa(best)
