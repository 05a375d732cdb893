"""The library for another kind of machine, and ``stress.cpp`` over it in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import CpuLibrary
from tests.host_cuda.compiling import run_compiler
from tests.plugins.cpu.compiling import BUILD, built
from tests.plugins.cpu.test_sanitized import STRESS

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_the_kernels_run_on_aarch64(tmp_path: Path) -> None:
    """Everything compiles and links; the kernels give the same on one thread and on three."""
    compiler, emulator = (shutil.which(name) for name in (COMPILER, EMULATOR))
    if compiler is None or emulator is None:
        pytest.skip(f"needs {COMPILER} and {EMULATOR}, Debian's g++-aarch64-linux-gnu and qemu-user")
    folder = BUILD / "cpu-aarch64"
    build = CpuLibrary(Path(compiler), folder, machine="aarch64")
    built(build, folder)
    sources = [source for source in build.sources if source.parent.name != "onnxruntime"]
    assert sources and not [source for source in sources if "avx" in source.name]
    kernels = [str(folder / f"{source.parent.name}-{source.stem}.o") for source in sources]
    program = tmp_path / "stress"
    link = ["-static", "-pthread", *kernels, "-o", str(program)]
    run_compiler([compiler, *build.flags(STRESS), str(STRESS), *link])
    done = subprocess.run([emulator, program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
