"""Compiles CUDA sources with g++, against the stand-ins for the CUDA headers in ``include/``.

What comes out stays in ``build/host_cuda`` under a name made from all that went in: nothing is made twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

HOST_CUDA = Path(__file__).resolve().parent
ROOT = HOST_CUDA.parents[1]
CSRC = ROOT / "plugins" / "csrc"
BUILD = ROOT / "build" / "host_cuda"
KERNEL_SOURCES = sorted(CSRC.glob("kernels/*/*.cu"))
MACHINE_SOURCES = sorted(HOST_CUDA.glob("machine/*.cpp"))
INCLUDES = [f"-I{CSRC / 'include'}", f"-I{CSRC / 'kernels'}"]
HOST_INCLUDES = [f"-I{HOST_CUDA / 'include'}", f"-I{HOST_CUDA}", *INCLUDES]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # of nvcc: #pragma unroll
COMPILE_JOBS = 2


@dataclass(frozen=True)
class HostFlags:
    """How to compile CUDA sources for the host.

    Attributes:
        common: flags of every file and of the linker.
        kernels: flags of the CUDA sources alone.
        link: flags of the linker alone.
    """

    common: Sequence[str] = ("-O1",)
    kernels: Sequence[str] = ()
    link: Sequence[str] = ("-shared",)


SANITIZED = HostFlags(("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
RACES = HostFlags(("-O1", "-g"), kernels=("-fsanitize=thread",))
"""Its calls end in ``machine/races.cpp``; gcc's own run-time library takes no part."""


def run_compiler(command: Sequence[str]) -> None:
    """Run a compiler; what it says is the failure's message."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def compile_for_host(
    name: str, flags: HostFlags = HostFlags(), sources: Sequence[Path] = KERNEL_SOURCES
) -> Path:
    """Compile and link CUDA sources, all kernels unless told, and return the library or program ``name``."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels")
    command = ["g++", "-std=c++17", "-fPIC", *WARNINGS, *HOST_INCLUDES, *flags.common]

    def compile_object(source: Path) -> Path:
        own = [*command, *(() if source in MACHINE_SOURCES else flags.kernels)]
        key = _digest(own, source.read_bytes(), _headers())
        target = BUILD / f"{source.parent.name}-{source.stem}-{key}.o"
        return _made(target, [*own, "-c", "-x", "c++", str(source)])

    with ThreadPoolExecutor(COMPILE_JOBS) as pool:
        objects = [str(path) for path in pool.map(compile_object, (*MACHINE_SOURCES, *sources))]
    link = [*command, *flags.link, *objects, "-ldl"]
    return _made(BUILD / _digest(link) / name, link)


def _made(target: Path, command: Sequence[str]) -> Path:
    """The file, made by one process while the others wait, if it is not there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if not target.exists():
            partial = target.with_suffix(".partial")
            run_compiler([*command, "-o", str(partial)])
            partial.rename(target)
    return target


def _digest(command: Sequence[str], *contents: bytes) -> str:
    parts = [_compiler(), "\n".join(command).encode(), *contents]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@cache
def _compiler() -> bytes:
    return subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout


@cache
def _headers() -> bytes:
    """All headers: a kernel that includes another's is compiled again, too."""
    headers = [path for folder in (CSRC / "kernels", HOST_CUDA) for path in folder.rglob("*.*h")]
    headers.append(CSRC / "include" / "q2export" / "kernels.h")
    return b"\0".join(path.read_bytes() for path in sorted(headers))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads from making the same file."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
