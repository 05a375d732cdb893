"""The C++ runtime: ``libq2export.so``, its headers, and where an installation of this package has them."""

from __future__ import annotations

from pathlib import Path

PREFIX = Path(__file__).resolve().parent / "prefix"
"""CMake prefix of the built library: ``include/``, ``lib/``, ``lib/cmake/``, ``lib/pkgconfig/``."""

LIBRARY = PREFIX / "lib" / "libq2export.so"
