"""Compile ``csrc/cpu`` and ``csrc/onnxruntime`` into one library, again only what has changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .compiler import KernelBuildError, NoKernelsError
from .library import CSRC, command_text, dependencies, is_current, run_compiler

CPU_LIBRARY = CSRC.with_name("lib") / "libq2export_onnxruntime.so"
"""Where the package has its custom ops for ONNX Runtime on the CPU."""

CPU_RECORD = CPU_LIBRARY.with_suffix(".txt")
"""Beside it: what it was built with, or why it was not."""

CPU_VARIABLE = "Q2EXPORT_CPU_KERNELS"
"""Environment variable: "none" leaves them out, "required" fails an installation without them."""

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
"""Of every source. Multiplying and adding are one operation only where a kernel says so: otherwise a row's
last bit would depend on what the compiler made of the loop that it went through."""

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
# The two warnings are for gcc's own header, whose undefined vectors it takes for a mistake (GCC bug 105593).
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
_AVX512_WARNINGS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
X86_FLAGS: Mapping[str, tuple[str, ...]] = {
    "_avx2": _AVX2,
    "_avx512": (*_AVX512, *_AVX512_WARNINGS),
    "_avx512_bf16": (*_AVX512, "-mavx512bf16", *_AVX512_WARNINGS),
}
"""Of the sources whose names end so; other machines leave these out."""


@dataclass(frozen=True)
class CpuLibrary:
    """The library of one C++ compiler.

    Attributes:
        compiler: a g++ or clang++.
        folder: of what is kept between builds.
        extra: further options of compiler and linker, such as a sanitizer's.
        ort_include: folder of ONNX Runtime's own ``onnxruntime_c_api.h``; None: ``ort_abi.h`` is enough.
        csrc: the folder of the sources.
        machine: what is compiled for, as :func:`platform.machine` names it.
    """

    compiler: Path
    folder: Path
    extra: tuple[str, ...] = ()
    ort_include: Path | None = None
    csrc: Path = CSRC
    machine: str = platform.machine()

    def __str__(self) -> str:
        said = run_compiler([str(self.compiler), "--version"]).splitlines()
        return f"{said[0] if said else self.compiler} for {self.machine}"

    @property
    def sources(self) -> list[Path]:
        """The sources for this machine."""
        found = [path for folder in ("cpu", "onnxruntime") for path in self.csrc.glob(f"{folder}/**/*.cpp")]
        is_x86 = self.machine in ("x86_64", "AMD64")
        return sorted(path for path in found if is_x86 or not path.stem.endswith(tuple(X86_FLAGS)))

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
        exports = self.csrc / "onnxruntime" / "exports.map"
        link = ["-shared", "-pthread", "-Wl,--no-undefined", f"-Wl,--version-script={exports}"]
        if any("sanitize" in each for each in self.extra):
            link.remove("-Wl,--no-undefined")  # the sanitizer's own names are the process's
        command = [str(self.compiler), *self.extra, *link, *map(str, objects)]
        record = self.folder / "library.command"
        if is_current(output, [*objects, exports], record, command):
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        run_compiler([*command, "-o", str(partial)])
        os.replace(partial, output)
        record.write_text(command_text(command), encoding="utf-8")

    def flags(self, source: Path) -> list[str]:
        """Options that a source is compiled with."""
        of_set = [
            flag for suffix, flags in X86_FLAGS.items() if source.stem.endswith(suffix) for flag in flags
        ]
        includes = [f"-I{self.csrc / name}" for name in ("include", "cpu", "onnxruntime")]
        if self.ort_include is not None:
            includes += ["-DQ2EXPORT_ORT_INCLUDE", "-isystem", str(self.ort_include)]
        return [*FLAGS, *of_set, *includes, *self.extra]

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


def cpu_library(environment: Mapping[str, str], folder: Path) -> CpuLibrary:
    """Return the library that can be built here.

    Args:
        environment: variables of the process: CXX names the compiler, ORT_INCLUDE the folder of ONNX
            Runtime's header, :data:`CPU_VARIABLE` says whether to build.
        folder: of what is kept between builds.

    Raises:
        NoKernelsError: it is not asked for, or there is no C++ compiler; the message says where it was looked
            for.
        KernelBuildError: the environment asks for what cannot be.
    """
    wanted = _wanted(environment)
    if wanted == "none":
        raise NoKernelsError(f"{CPU_VARIABLE} is none")
    if wanted not in ("", "required"):
        raise KernelBuildError(f"{CPU_VARIABLE} is {wanted!r}, expected none, required, or to be unset")
    include = environment.get("ORT_INCLUDE")
    if include and not (Path(include) / "onnxruntime_c_api.h").is_file():
        raise KernelBuildError(f"ORT_INCLUDE is {include}, which has no onnxruntime_c_api.h")
    names = [environment["CXX"]] if environment.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        path = shutil.which(name, path=environment.get("PATH", ""))
        if path is not None and _runs([path, "--version"]):
            return CpuLibrary(Path(path), folder, ort_include=Path(include) if include else None)
    raise NoKernelsError(f"no C++ compiler: looked for {', '.join(names)} on PATH; install g++, or set CXX")


def cpu_is_required(environment: Mapping[str, str]) -> bool:
    """Whether an installation without the library has failed."""
    return _wanted(environment) not in ("", "none")


def _wanted(environment: Mapping[str, str]) -> str:
    return environment.get(CPU_VARIABLE, "").strip().lower()


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
