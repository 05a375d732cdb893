"""``ort_abi.h``, our declaration of ONNX Runtime's C ABI, against the header that defines it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import CpuLibrary
from tests.host_cuda.compiling import CSRC, run_compiler

HEADER = CSRC / "onnxruntime" / "ort_abi.h"

_CONSTANTS = (
    "ORT_FAIL",
    "ORT_INVALID_ARGUMENT",
    "ORT_LOGGING_LEVEL_ERROR",
    "ORT_DISABLE_ALL",
    "OrtDeviceAllocator",
    "OrtMemTypeDefault",
    "INPUT_OUTPUT_VARIADIC",
)


def places(folder: Path, include: Path | None) -> dict[str, int]:
    """Offsets of all members and values of all constants that our header declares, by whichever header."""
    text = HEADER.read_text("utf-8")
    api = re.findall(r"\(\*(\w+)\)\([^;]*;\s*// \d+", text)
    op = re.findall(r"\(\*(\w+)\)\(", text[text.index("struct OrtCustomOp\n") :])
    constants = [*_CONSTANTS, *re.findall(r"(ONNX_TENSOR_\w+) =", text)]
    assert len(api) > 15
    assert len(op) == 25
    lines = [f'show("OrtApi.{each}", offsetof(OrtApi, {each}));' for each in api]
    lines += [f'show("OrtCustomOp.{each}", offsetof(OrtCustomOp, {each}));' for each in op]
    lines += [f'show("{each}", {each});' for each in constants]
    show = 'static void show(char const* name, long value) { std::printf("%s %ld\\n", name, value); }\n'
    source = folder / "places.cpp"
    body = "\n    ".join(lines)
    source.write_text(
        f'#include <cstddef>\n#include <cstdio>\n#include "{HEADER}"\n{show}int main()\n{{\n    {body}\n}}\n'
    )
    flags = [] if include is None else ["-DQ2EXPORT_ORT_INCLUDE", f"-I{include}"]
    program = folder / "places"
    run_compiler(["g++", "-std=c++17", *flags, str(source), "-o", str(program)])
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_members_are_where_the_comments_say(tmp_path: Path) -> None:
    found = places(tmp_path, None)
    said = re.findall(r"\(\*(\w+)\)\([^;]*;\s*// (\d+)", HEADER.read_text("utf-8"))
    assert len(said) > 15
    for name, place in said:
        assert found[f"OrtApi.{name}"] == 8 * int(place), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_equals_onnxruntimes_own_header(tmp_path: Path) -> None:
    include = os.environ.get("ORT_INCLUDE")
    if not include:
        pytest.skip("set ORT_INCLUDE to the folder of ONNX Runtime's onnxruntime_c_api.h")
    assert places(tmp_path, None) == places(tmp_path, Path(include))


def test_the_library_builds_against_onnxruntimes_own_header(cpu_build: CpuLibrary, tmp_path: Path) -> None:
    if cpu_build.ort_include is None:
        pytest.skip("set ORT_INCLUDE to the folder of ONNX Runtime's onnxruntime_c_api.h")
    sources = sorted(CSRC.glob("onnxruntime/*.cpp"))
    for source in sources:
        run_compiler([str(cpu_build.compiler), *cpu_build.flags(source), "-fsyntax-only", str(source)])
