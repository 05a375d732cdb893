"""Compile ``csrc/cpu`` and ``csrc/onnxruntime`` into one library, again only what has changed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .compiler import KernelBuildError, NoKernelsError
from .cxx import FLAGS, CxxLibrary, find_cxx, is_asked_for, wanted
from .library import CSRC, run_compiler

CPU_LIBRARY = CSRC.with_name("lib") / "libq2export_onnxruntime.so"
"""Where the package has its custom ops for ONNX Runtime on the CPU."""

CPU_RECORD = CPU_LIBRARY.with_suffix(".txt")
"""Beside it: what it was built with, or why it was not."""

CPU_VARIABLE = "Q2EXPORT_CPU_KERNELS"
"""Environment variable: "none" leaves them out, "required" fails an installation without them."""

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
class CpuLibrary(CxxLibrary):
    """The library of one C++ compiler.

    Attributes:
        ort_include: folder of ONNX Runtime's own ``onnxruntime_c_api.h``; None: ``ort_abi.h`` is enough.
        csrc: the folder of the sources.
        machine: what is compiled for, as :func:`platform.machine` names it.
    """

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

    @property
    def exports(self) -> Path:
        """What the library exports."""
        return self.csrc / "onnxruntime" / "exports.map"

    def flags(self, source: Path) -> list[str]:
        """Options that a source is compiled with."""
        of_set = [
            flag for suffix, flags in X86_FLAGS.items() if source.stem.endswith(suffix) for flag in flags
        ]
        includes = [f"-I{self.csrc / name}" for name in ("include", "cpu", "onnxruntime")]
        if self.ort_include is not None:
            includes += ["-DQ2EXPORT_ORT_INCLUDE", "-isystem", str(self.ort_include)]
        return [*FLAGS, *of_set, *includes, *self.extra]


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
    if not wanted(environment, CPU_VARIABLE):
        raise NoKernelsError(f"{CPU_VARIABLE} is none")
    include = environment.get("ORT_INCLUDE")
    if include and not (Path(include) / "onnxruntime_c_api.h").is_file():
        raise KernelBuildError(f"ORT_INCLUDE is {include}, which has no onnxruntime_c_api.h")
    return CpuLibrary(find_cxx(environment), folder, ort_include=Path(include) if include else None)


def cpu_is_required(environment: Mapping[str, str]) -> bool:
    """Whether an installation without the library has failed."""
    return is_asked_for(environment, CPU_VARIABLE)
