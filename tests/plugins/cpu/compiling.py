"""Builds the library of custom ops for tests, again only what has changed."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path

from q2export.plugins.kernel_build import CpuLibrary
from tests.host_cuda.compiling import ROOT

BUILD = ROOT / "build"
JOBS = 2


def built(library: CpuLibrary, folder: Path) -> Path:
    """The library, built in a folder that is kept; one process builds, others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "libq2export_onnxruntime.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        replace(library, folder=folder).build(output, JOBS)
    return output
