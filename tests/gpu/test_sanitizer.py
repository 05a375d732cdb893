"""compute-sanitizer over the kernels: no bad access, no race between threads of a block."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_is_content(gpu_library: Path, tool: str) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu.workload"]
    done = subprocess.run([*command, str(gpu_library)], cwd=ROOT, capture_output=True, text=True)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not run on this machine: Device not supported")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "done" in done.stdout
