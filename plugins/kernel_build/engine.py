"""Compile ``runtime/cpp`` into ``libq2export.so``, and lay out the CMake prefix around it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .compiler import NoKernelsError
from .cxx import FLAGS, CxxLibrary, find_cxx, wanted
from .library import CSRC, run_compiler

ENGINE_VARIABLE = "Q2EXPORT_CPP"
"""Environment variable: "none" leaves the library out, "required" fails an installation without it."""

ENGINE_LIBRARY = "libq2export.so"
ENGINE_RECORD = "libq2export.txt"
"""Beside the prefix: what the library was built with, or why it was not."""


@dataclass(frozen=True)
class EngineLibrary(CxxLibrary):
    """``libq2export.so``.

    Attributes:
        cpp: the folder of the sources, ``runtime/cpp``; the declaration of ONNX Runtime's ABI is that of the
            plugins.
    """

    cpp: Path = Path()

    def __str__(self) -> str:
        said = run_compiler([str(self.compiler), "--version"]).splitlines()
        return said[0] if said else str(self.compiler)

    @property
    def sources(self) -> list[Path]:
        """One file that includes all others: half the work, which is the standard library's headers."""
        lines = [f'#include "{path}"\n' for path in sorted((self.cpp / "src").rglob("*.cpp"))]
        whole, text = self.folder / "libq2export.cpp", "".join(lines)
        if not (whole.is_file() and whole.read_text(encoding="utf-8") == text):
            self.folder.mkdir(parents=True, exist_ok=True)
            whole.write_text(text, encoding="utf-8")
        return [whole]

    @property
    def exports(self) -> Path:
        """What the library exports."""
        return self.cpp / "src" / "exports.map"

    @property
    def link_flags(self) -> list[str]:
        """It opens other libraries while it runs."""
        return ["-ldl", f"-Wl,-soname,{ENGINE_LIBRARY}"]

    def flags(self, source: Path) -> list[str]:
        """Options that a source is compiled with."""
        includes = (self.cpp / "include", self.cpp / "src", CSRC / "onnxruntime")
        return [*FLAGS, *(f"-I{folder}" for folder in includes), *self.extra]

    @property
    def version(self) -> str:
        """Of q2export, from the generated table that the library itself has it from."""
        text = (self.cpp / "src" / "generated" / "contract.inc").read_text(encoding="utf-8")
        found = re.search(r'kVersion\[\] = "([^"]+)"', text)
        assert found is not None
        return found[1]

    def install(self, prefix: Path, jobs: int) -> list[Path]:
        """Build the library into a CMake prefix, with headers and what finds it, as ``cmake --install`` does.

        Raises:
            KernelBuildError: as :meth:`build`.

        Returns:
            all files, relative to the prefix.
        """
        self.build(prefix / "lib" / ENGINE_LIBRARY, jobs)
        made = [Path("lib") / ENGINE_LIBRARY]
        for header in sorted((self.cpp / "include" / "q2export").iterdir()):
            made.append(Path("include") / "q2export" / header.name)
            (prefix / made[-1]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, prefix / made[-1])
        for template in sorted((self.cpp / "cmake").glob("*.in")):
            kind = "pkgconfig" if template.stem.endswith(".pc") else "cmake/q2export"
            made.append(Path("lib") / kind / template.stem)
            (prefix / made[-1]).parent.mkdir(parents=True, exist_ok=True)
            text = template.read_text(encoding="utf-8")
            text = text.replace("@Q2EXPORT_VERSION@", self.version)
            text = text.replace("@Q2EXPORT_PREFIX_FROM_LIBDIR@", "..")
            (prefix / made[-1]).write_text(text, encoding="utf-8")
        return made


def engine_library(environment: Mapping[str, str], folder: Path, cpp: Path) -> EngineLibrary:
    """Return the library that can be built here.

    Args:
        environment: variables of the process: CXX names the compiler, :data:`ENGINE_VARIABLE` says whether.
        folder: of what is kept between builds.
        cpp: the folder of the sources.

    Raises:
        NoKernelsError: it is not asked for, or there is no C++ compiler.
        KernelBuildError: the environment asks for what cannot be.
    """
    if not wanted(environment, ENGINE_VARIABLE):
        raise NoKernelsError(f"{ENGINE_VARIABLE} is none")
    if not (cpp / "src").is_dir():
        raise NoKernelsError(f"{cpp / 'src'} is absent")
    return EngineLibrary(find_cxx(environment), folder, cpp=cpp)
