"""Which builds of the kernels may overlap launches on which GPU: where the code that runs there waits."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from q2export.plugins.kernel_build.compiler import ARCHITECTURES, code_flags
from tests.host_cuda.compiling import INCLUDES, WARNINGS, run_compiler

SOURCE = """
#include "common/gpu.h"
extern "C" bool overlap(int32_t compute_capability)
{
    q2export::Gpu gpu{};
    gpu.compute_capability = compute_capability;
    return q2export::launches_can_overlap(gpu);
}
"""
GPUS = (80, 89, 90, 100, 120)


@pytest.mark.parametrize(
    ("architectures", "overlapping"),
    [
        (("80",), ()),  # a Hopper runs PTX of 8.0, which has no such wait
        (("80", "86"), ()),
        (("80", "90a"), (90,)),  # and a Blackwell runs that PTX
        (("90a",), (90,)),
        (("80", "120"), (90, 100, 120)),  # no code of these runs on 9.0 or 10.0
        (ARCHITECTURES, (90, 100, 120)),
    ],
)
def test_overlap_needs_code_for_hopper_or_later(
    architectures: tuple[str, ...], overlapping: tuple[int, ...], tmp_path: Path
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the heuristics")
    (tmp_path / "overlap.cpp").write_text(SOURCE)
    defined = [flag for flag in code_flags(architectures) if flag.startswith("-D")]
    library = tmp_path / "liboverlap.so"
    files = [str(tmp_path / "overlap.cpp"), "-o", str(library)]
    run_compiler(["g++", "-std=c++17", "-shared", "-fPIC", *WARNINGS, *INCLUDES, *defined, *files])
    overlap = ctypes.CDLL(str(library)).overlap
    overlap.restype = ctypes.c_bool
    assert tuple(gpu for gpu in GPUS if overlap(gpu)) == overlapping
