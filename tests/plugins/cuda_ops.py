"""The custom ops of the CUDA provider, over kernels compiled for the host."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import ort_glue
from tests.host_cuda.compiling import BUILD, CSRC, WARNINGS, run_compiler


def glue(kernels: Path, provider: str) -> Path:
    """The custom ops over the kernels of another library, for an execution provider; a C expression."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    includes = [f"-I{CSRC / name}" for name in ("include", "onnxruntime")]
    files = [path for folder in ("onnxruntime", "onnxruntime_cuda") for path in CSRC.glob(f"{folder}/*")]
    content = b"".join(path.read_bytes() for path in sorted(files)) + str(kernels).encode()
    target = BUILD / f"libcuda_ops-{hashlib.sha256(content + provider.encode()).hexdigest()[:12]}.so"
    if not target.exists():
        command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", *WARNINGS, *includes]
        command += [f"-DQ2EXPORT_ORT_PROVIDER={provider}", *map(str, ort_glue(CSRC)), str(kernels)]
        partial = target.with_suffix(f".{id(content)}.partial")
        run_compiler([*command, f"-Wl,-rpath,{kernels.parent}", "-o", str(partial)])
        partial.rename(target)
    return target
