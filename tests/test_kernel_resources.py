"""The table of registers and spills, and that what nvcc makes of the kernels spills nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.kernels import resources, sass
from benchmarks.kernels.resources import Resources, as_json, demangled, parse, problems, report, table
from q2export.plugins.kernel_build import Compiler, KernelLibrary, NoKernelsError

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8q2export10add_kernelI6__halfLi3EEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN8q2export10add_kernelI6__halfLi3EEEvPT_
    8 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, 1040 bytes smem
ptxas info    : Compile time = 1.5 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8q2export16reference_kernelEPf' for 'sm_90a'
ptxas info    : Function properties for _ZN8q2export16reference_kernelEPf
    0 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
ptxas info    : Compile time = 1.5 ms
"""


def record(registers: int, architecture: str = "80", spilled: int = 0) -> Resources:
    return Resources("kernel", architecture, registers, 0, spilled, spilled, spilled)


def test_what_ptxas_says_is_read() -> None:
    add, reference = parse(LOG)
    assert add == Resources(add.kernel, "80", 168, 1040, 8, 8, 24)
    assert reference == Resources(reference.kernel, "90a", 4, 0, 0, 16, 16)


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt of binutils")
def test_names_are_those_of_the_sources() -> None:
    assert [each.kernel for each in demangled(parse(LOG))] == ["add_kernel<__half, 3>", "reference_kernel"]
    (problem,) = problems(LOG)
    assert problem == "add_kernel<__half, 3> on sm_80: 168 (12), spills 8 B out, 24 B in"


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "a.cu(1): warning #1: x",
    ],
)
def test_warnings_are_problems(line: str) -> None:
    assert problems(f"before\n{line}\nafter\n") == [line]


@pytest.mark.parametrize(
    ("registers", "architecture", "warps"),
    [
        (32, "80", 64),
        (33, "80", 48),
        (40, "86", 48),
        (128, "90a", 16),
        (168, "90a", 12),
        (169, "90a", 8),
        (255, "120", 8),
        (4, "89", 48),
    ],
)  # the occupancy calculator's: 65,536 registers of a multiprocessor, 256 at a time
def test_warps_that_registers_allow(registers: int, architecture: str, warps: int) -> None:
    assert record(registers, architecture).resident_warps == warps


def test_the_table_has_a_column_for_each_architecture(tmp_path: Path) -> None:
    library = KernelLibrary(Compiler(Path("nvcc"), "13.0", frozenset()), ("80", "90a"), tmp_path)
    records = [record(64), record(255, "90a", spilled=4)]
    result = json.loads(as_json(report(records, library)))
    assert result["kernels"][1]["spill_load_bytes"] == 4 and result["nvcc"] == "13.0"
    text = table(records, result)
    assert "| kernel | static shared memory | sm_80 | sm_90a |" in text
    assert "| `kernel` |  | 64 (32) | 255 (8), spills 4 B out, 4 B in |" in text
    assert "1 kernels, of whose 2 compilations 1 spill" in text


def machine_code(name: str, *behind_the_wait: str) -> str:
    """What cuobjdump prints of a kernel that waits for all but one product."""
    lines = ["HGMMA.64x128x16.F32.BF16 R88, gdesc[UR12], RZ, !UPT", "MUFU.EX2 R1, R2"]
    lines += ["WARPGROUP.DEPBAR.LE gsb0, 0x1", *behind_the_wait, "MUFU.EX2 R3, R4"]
    printed = "\n".join(
        f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(lines)
    )
    return f"\t\tFunction : {name}\n\t.headerflags @EF_CUDA_SM90\n{printed}\n"


def test_exponentials_beside_a_product_are_counted() -> None:
    exponentials = ["MUFU.EX2 R5, R6", "FADD R7, R7, R5"] * 70
    wait = ["WARPGROUP.DEPBAR.LE gsb0, 0x0"]
    text = machine_code("good", *exponentials, *wait) + machine_code("bad", *wait, *exponentials)
    kernels = sass.functions(f"Fatbin elf code:\n{text}")
    counts = {name: sass.exponentials_beside_product(code) for name, code in kernels.items()}
    assert counts == {"good": 70, "bad": 0}
    assert sass.exponentials_beside_product("MUFU.EX2 R1, R2\nEXIT") == 0


def test_a_step_that_overlaps_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "cuobjdump"
    text = machine_code("_Z21hopper_prefill_kernelv", "WARPGROUP.DEPBAR.LE gsb0, 0x0")
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sass, "find_disassembler", lambda: tool)
    (found,) = sass.problems([Path("kernels-attention-prefill_hopper.o"), Path("kernels-moe-moe.o")])
    assert found == "_Z21hopper_prefill_kernelv: 0 exponentials run beside a product, expected 64"
    tool.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(RuntimeError, match="broken"):
        sass.problems([Path("prefill_hopper.o")])


def test_nvcc_warns_of_nothing_and_spills_nothing() -> None:
    """For Ampere and Hopper, which have different code; all targets are in ``benchmarks/results/kernels``."""
    folder = resources.REPOSITORY / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "kernels.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            library = resources.build({**os.environ, "Q2EXPORT_CUDA_ARCHITECTURES": "80;90a"})
        except NoKernelsError as reason:
            pytest.skip(f"needs nvcc: {reason}")
        log = library.log()
    assert problems(log) == []
    assert sass.problems(sorted(library.objects.glob("*.o"))) == []
    assert {each.architecture for each in parse(log)} == {"80", "90a"}
