"""The C++ runtime, ``libq2export.so``: where this installation has it, and what it loads while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from q2export.errors import MissingDependencyError
from q2export.plugins.kernel_build import CPU_LIBRARY, ENGINE_LIBRARY, ENGINE_RECORD, recorded

PREFIX = Path(__file__).resolve().parent / "prefix"
"""CMake prefix of the built library: ``include/``, ``lib/``, ``lib/cmake/``, ``lib/pkgconfig/``."""

RECORD = PREFIX.with_name(ENGINE_RECORD)
"""Beside it: what the library was built with, or why it was not."""


@dataclass(frozen=True)
class CppLibraries:
    """What a C or C++ program links with, and what is loaded for it.

    Attributes:
        prefix: CMake prefix of ``libq2export.so``.
        compiler: that built it.
        onnxruntime: file of ONNX Runtime's library; None where the Python package is not installed.
        ops: file of q2export's own ops for it; None where they were not built.
    """

    prefix: str
    compiler: str
    onnxruntime: str | None
    ops: str | None


def cpp_libraries() -> CppLibraries:
    """Find the libraries of this installation.

    Raises:
        MissingDependencyError: ``libq2export.so`` was not built; the message says why.
    """
    if not (PREFIX / "lib" / ENGINE_LIBRARY).is_file():
        raise MissingDependencyError(
            f"{PREFIX / 'lib' / ENGINE_LIBRARY}: {recorded(RECORD)}; install q2export from source where "
            "there is a C++17 compiler, or build runtime/cpp with CMake (docs/cpp.md)"
        )
    spec = find_spec("onnxruntime")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    found = [] if folder is None else sorted(folder.glob("capi/libonnxruntime.so.*"))
    return CppLibraries(
        str(PREFIX),
        recorded(RECORD),
        str(found[0]) if found else None,
        str(CPU_LIBRARY) if CPU_LIBRARY.is_file() else None,
    )
