"""Compiles programs and the library's sources in one piece, under sanitizers; again only what has changed."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import EngineLibrary
from q2export.plugins.kernel_build.library import is_current
from tests.host_cuda.compiling import ROOT, run_compiler

BUILD = ROOT / "build" / "cpp"
CPP = ROOT / "runtime" / "cpp"
SANITIZERS = {
    "address": ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O0", "-g1", "-fsanitize=thread"),
}


def sanitized(build: EngineLibrary, sanitizer: str, program: Path, folders: Iterable[str]) -> Path:
    """A program and the sources of some folders, as one.

    Args:
        build: of the library: its compiler.
        sanitizer: of :data:`SANITIZERS`.
        program: the source with ``main``.
        folders: below ``src``, or single files of it.
    """
    flags = SANITIZERS[sanitizer]
    folder = BUILD / sanitizer
    folder.mkdir(parents=True, exist_ok=True)
    _probe(build, flags, folder)
    paths = [CPP / "src" / each for each in folders]
    sources = [one for path in paths for one in (sorted(path.rglob("*.cpp")) if path.is_dir() else [path])]
    whole, output = folder / f"whole_{program.name}", folder / program.stem
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole.write_text("".join(f'#include "{path}"\n' for path in [*sources, program]))
        command = [str(build.compiler), *build.flags(whole), *flags, str(whole), "-ldl", "-pthread"]
        record = folder / f"{program.stem}.command"
        headers = [*CPP.rglob("*.h"), *CPP.rglob("*.inc"), *sources, program]
        if not is_current(output, headers, record, command):
            run_compiler([*command, "-o", str(output)])
            record.write_text(_text(command))
    return output


def _text(command: Sequence[str]) -> str:
    from q2export.plugins.kernel_build.library import command_text

    return command_text(command)


def _probe(build: EngineLibrary, flags: Sequence[str], folder: Path) -> None:
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [str(build.compiler), *flags, str(probe), "-o", str(folder / "probe")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{build.compiler} has no {flags[-1]}")
