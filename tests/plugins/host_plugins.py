"""The C++ plugins compiled with the kernels for the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.host_cuda.compiling import CSRC, HOST_INCLUDES, WARNINGS, run_compiler

PLUGIN_SOURCES = sorted((CSRC / "tensorrt").rglob("*.cpp"))


def compile_plugins(output: Path, headers: Path, kernels: Path, sources: Sequence[Path], *flags: str) -> Path:
    """Compile sources against TensorRT's headers and the host kernels into the library ``output``."""
    includes = [*HOST_INCLUDES, f"-I{CSRC / 'tensorrt'}", "-isystem", str(headers)]
    link = [str(kernels), f"-Wl,-rpath,{kernels.parent}", "-Wl,--no-undefined", "-ldl"]
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", *WARNINGS, *includes]
    run_compiler([*command, *map(str, sources), *link, *flags, "-o", str(output)])
    return output
