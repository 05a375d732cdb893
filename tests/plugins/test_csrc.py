"""The C++ and CUDA sources as compilers, sanitizers and CMake see them; no GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from q2export.plugins import generate_spec
from tests.host_cuda import sanitizers
from tests.host_cuda.compiling import CSRC, ROOT, run_compiler

HEADER = CSRC / "include" / "q2export" / "kernels.h"


def need(program: str) -> str:
    """The path of a program; the test is skipped where it is absent."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}")
    return path


def test_spec_inc_is_up_to_date() -> None:
    written = generate_spec.PATH.read_text(encoding="utf-8")
    assert written == generate_spec.spec_inc(), "run: python -m q2export.plugins.generate_spec"


@pytest.mark.parametrize(
    ("compiler", "language", "standard"),
    [("gcc", "c", "c99"), ("g++", "c++", "c++17")],
)
def test_the_header_is_clean(compiler: str, language: str, standard: str) -> None:
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run_compiler(
        [need(compiler), f"-std={standard}", *warnings, "-fsyntax-only", "-x", language, str(HEADER)]
    )


def test_kernels_are_clean_under_sanitizers(sanitized_kernels: Path) -> None:
    done = sanitizers.run("tests.plugins.sanitized", [str(sanitized_kernels), "clean"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["rotary", "attention", "moe"]


def test_kernels_have_no_races(race_checked_kernels: Path) -> None:
    done = sanitizers.run_apart("tests.plugins.sanitized", [str(race_checked_kernels), "clean"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["rotary", "attention", "moe"]


def test_the_sanitizer_sees_a_kernel_leave_its_buffer(sanitized_kernels: Path) -> None:
    done = sanitizers.run("tests.plugins.sanitized", [str(sanitized_kernels), "overflow"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "route_kernel" in done.stderr


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [need("cmake"), "-S", str(ROOT / "plugins"), "-B", str(build), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_cmake_without_cuda_says_what_it_skips(tmp_path: Path) -> None:
    need("g++")
    done = configure(tmp_path, "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    message = " ".join(done.stderr.split())
    assert done.returncode == 0
    assert (
        "Skipped: libq2export_kernels.so and libq2export_plugins.so, for lack of a CUDA compiler" in message
    )


def test_cmake_without_headers_says_what_it_skips(tmp_path: Path) -> None:
    need("nvcc")
    done = configure(tmp_path, f"-DQ2EXPORT_TENSORRT_REPOSITORY=file://{tmp_path}/absent", "-DTENSORRT_ROOT=")
    assert done.returncode == 0
    assert "Skipped: libq2export_plugins.so, for lack of TensorRT's headers" in " ".join(done.stderr.split())


def test_cmake_refuses_a_wrong_tensorrt_root(tmp_path: Path) -> None:
    need("nvcc")
    done = configure(tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path}")
    assert done.returncode != 0
    assert "include/NvInferRuntime.h does not exist" in " ".join(done.stderr.split())
