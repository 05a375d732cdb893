"""Compile C++ sources into one library, again only what has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .compiler import KernelBuildError, NoKernelsError
from .library import command_text, dependencies, is_current, run_compiler

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
"""Of every source. Multiplying and adding are one operation only where a kernel says so: otherwise a row's
last bit would depend on what the compiler made of the loop that it went through."""


@dataclass(frozen=True)
class CxxLibrary(ABC):
    """The library of one C++ compiler.

    Attributes:
        compiler: a g++ or clang++.
        folder: of what is kept between builds.
        extra: further options of compiler and linker, such as a sanitizer's.
    """

    compiler: Path
    folder: Path
    extra: tuple[str, ...] = ()

    @property
    @abstractmethod
    def sources(self) -> list[Path]:
        """The sources."""

    @property
    @abstractmethod
    def exports(self) -> Path:
        """The version script that names what the library exports."""

    @abstractmethod
    def flags(self, source: Path) -> list[str]:
        """Options that a source is compiled with."""

    @property
    def link_flags(self) -> list[str]:
        """Options of the linker alone."""
        return []

    def build(self, output: Path, jobs: int) -> None:
        """Bring the library at ``output`` up to date; the old one stays where a source does not compile.

        Args:
            output: file to write.
            jobs: how many compilers may run at once.

        Raises:
            KernelBuildError: a source does not compile, or the library does not link; the compiler's words.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            objects = list(pool.map(self._compile, self.sources))
        link = ["-shared", "-pthread", "-Wl,--no-undefined", f"-Wl,--version-script={self.exports}"]
        if any("sanitize" in each for each in self.extra):
            link.remove("-Wl,--no-undefined")  # the sanitizer's own names are the process's
        command = [str(self.compiler), *self.extra, *link, *map(str, objects), *self.link_flags]
        record = self.folder / "library.command"
        if is_current(output, [*objects, self.exports], record, command):
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        run_compiler([*command, "-o", str(partial)])
        os.replace(partial, output)
        record.write_text(command_text(command), encoding="utf-8")

    def _compile(self, source: Path) -> Path:
        target = self.folder / f"{source.parent.name}-{source.stem}.o"
        depends, record = target.with_suffix(".d"), target.with_suffix(".command")
        command = [str(self.compiler), *self.flags(source), "-c", str(source)]
        if is_current(target, dependencies(depends), record, command):
            return target
        started = time.time_ns()
        partial = target.with_suffix(".partial.o")
        run_compiler([*command, "-MD", "-MF", str(depends), "-o", str(partial)])
        os.utime(partial, ns=(started, started))  # older than a source that is edited meanwhile
        os.replace(partial, target)
        record.write_text(command_text(command), encoding="utf-8")
        return target


def find_cxx(environment: Mapping[str, str]) -> Path:
    """The C++ compiler: ``CXX``, or the first on ``PATH`` that runs.

    Raises:
        NoKernelsError: there is none; the message says where it was looked for.
    """
    names = [environment["CXX"]] if environment.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        path = shutil.which(name, path=environment.get("PATH", ""))
        if path is not None and _runs([path, "--version"]):
            return Path(path)
    raise NoKernelsError(f"no C++ compiler: looked for {', '.join(names)} on PATH; install g++, or set CXX")


def wanted(environment: Mapping[str, str], variable: str) -> bool:
    """Whether a library is to be built, as its environment variable says.

    Raises:
        KernelBuildError: the variable is neither ``none`` nor ``required`` nor unset.
    """
    value = environment.get(variable, "").strip().lower()
    if value not in ("", "none", "required"):
        raise KernelBuildError(f"{variable} is {value!r}, expected none, required, or to be unset")
    return value != "none"


def is_asked_for(environment: Mapping[str, str], variable: str) -> bool:
    """Whether an installation without the library has failed."""
    return environment.get(variable, "").strip().lower() not in ("", "none")


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
