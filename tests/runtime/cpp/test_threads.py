"""``threads.cpp`` under the thread sanitizer: short here, for a minute by hand.

``threads PACKAGE 60 8``, with ``TSAN_OPTIONS`` and the libraries of the test below.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from q2export.plugins.kernel_build import CPU_LIBRARY, EngineLibrary
from tests.runtime.cpp.compiling import sanitized

SOURCES = ("error.cpp", "json", "package", "backends", "generate", "engine", "text", "c_api")
# ONNX Runtime is not compiled for it: what it does among its own threads cannot be followed.
SUPPRESSED = "called_from_lib:libonnxruntime.so\n"


def test_no_race_is_found(
    engine_build: EngineLibrary, onnxruntime_library: Path, qwen2_tiny_package: Path, tmp_path: Path
) -> None:
    program = sanitized(engine_build, "thread", Path(__file__).with_name("threads.cpp"), SOURCES)
    suppressions = tmp_path / "suppressions"
    suppressions.write_text(SUPPRESSED)
    environment = {
        **os.environ,
        "Q2EXPORT_ONNXRUNTIME": str(onnxruntime_library),
        "Q2EXPORT_OPS": str(CPU_LIBRARY),
        "TSAN_OPTIONS": f"suppressions={suppressions} ignore_noninstrumented_modules=1",
    }
    done = subprocess.run(
        [program, qwen2_tiny_package, "1", "4"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-6000:])
    assert re.fullmatch(r"\d+ texts, \d+ cancelled, 0 wrong\n", done.stdout)
