"""The kernels and the probes of them, compiled once for the GPU at hand, whoever asks for them.

python -m tests.gpu.compiling: compile them all, before a GPU is waited for.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from q2export.plugins.kernel_build import (
    ARCHITECTURES_VARIABLE,
    KernelLibrary,
    NoKernelsError,
    available_cores,
    plan,
)
from tests.host_cuda.compiling import KERNEL_SOURCES, ROOT
from tests.plugins import moe_probes, prefill_probes

PROBES = {"moe": moe_probes.SOURCES, "prefill": prefill_probes.SOURCES}
"""Sources of the libraries that the tests call beside the kernels' own."""


def kernels_for_gpu() -> Path:
    """``libq2export_kernels.so`` for this GPU alone; skips the test that lacks a GPU or a compiler."""
    library = _library()
    output = library.objects / "libq2export_kernels.so"
    with _locked(library.folder):
        library.build(output, available_cores())
    return output


def probes_for_gpu(name: str) -> Path:
    """A library of :data:`PROBES`, of the kernels' own object files and one more; skips likewise."""
    library = _library()
    output = library.objects / f"lib{name}_probes.so"
    with _locked(library.folder):
        _link(library, output, PROBES[name])
    return output


def _link(library: KernelLibrary, output: Path, sources: Sequence[Path]) -> None:
    own = [source for source in sources if source in KERNEL_SOURCES]
    probes = [source for source in sources if source not in KERNEL_SOURCES]
    objects = library.compile(own, available_cores())
    # The library of the kernels hides what no attribute shows; nothing shows the probes.
    library.link(output, [*objects, *library.compile(probes, 1, ["-Xcompiler=-fvisibility=default"])])


@cache
def _library() -> KernelLibrary:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and PyTorch with CUDA")
    major, minor = torch.cuda.get_device_capability()
    try:
        chosen = plan({**os.environ, ARCHITECTURES_VARIABLE: f"{major}{minor}"})
    except NoKernelsError as reason:
        pytest.skip(f"needs nvcc: {reason}")
    return KernelLibrary(chosen.compiler, chosen.architectures, ROOT / "build" / "kernels")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from compiling the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(kernels_for_gpu(), *map(probes_for_gpu, PROBES), sep="\n")
