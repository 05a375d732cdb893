"""``stress.cpp`` over the CPU kernels, compiled under gcc's sanitizers: no byte too far, no race."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import CpuLibrary
from tests.host_cuda.compiling import run_compiler
from tests.plugins.cpu.compiling import BUILD, built

STRESS = Path(__file__).with_name("stress.cpp")

SANITIZERS = {
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-fsanitize=thread"),
}


@pytest.mark.parametrize("name", SANITIZERS)
def test_nothing_is_found(cpu_build: CpuLibrary, name: str, tmp_path: Path) -> None:
    flags = SANITIZERS[name]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [str(cpu_build.compiler), *flags, str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{cpu_build.compiler} has no sanitizer {name}")
    build = replace(cpu_build, extra=flags)
    library = built(build, BUILD / f"cpu-{name}")
    program = tmp_path / "stress"
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread"]
    run_compiler(
        [str(build.compiler), "-std=c++17", *build.flags(STRESS), str(STRESS), *link, "-o", str(program)]
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
