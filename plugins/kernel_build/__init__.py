"""Builds ``libq2export_kernels.so``, for ``setup.py`` and ``python -m q2export.plugins.kernel_build``.

Needs nothing but Python: while the package is being installed, there is no package yet.
"""

from __future__ import annotations

from .compiler import (
    ARCHITECTURES,
    ARCHITECTURES_VARIABLE,
    Compiler,
    KernelBuildError,
    NoKernelsError,
    Plan,
    find_compiler,
    is_required,
    plan,
    wanted_architectures,
)
from .library import LIBRARY, RECORD, KernelLibrary, available_cores, recorded

__all__ = [
    "ARCHITECTURES",
    "ARCHITECTURES_VARIABLE",
    "LIBRARY",
    "RECORD",
    "Compiler",
    "KernelBuildError",
    "KernelLibrary",
    "NoKernelsError",
    "Plan",
    "available_cores",
    "find_compiler",
    "is_required",
    "plan",
    "recorded",
    "wanted_architectures",
]
