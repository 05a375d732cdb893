"""Builds ``libq2export_kernels.so`` (CUDA), ``libq2export_plugins.so`` (the same as TensorRT plugins) and
``libq2export_onnxruntime.so`` (CPU), for ``setup.py`` and ``python -m q2export.plugins.kernel_build``.

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
from .cpu import CPU_LIBRARY, CPU_RECORD, CPU_VARIABLE, CpuLibrary, cpu_is_required, cpu_library
from .cxx import is_asked_for
from .engine import ENGINE_LIBRARY, ENGINE_RECORD, ENGINE_VARIABLE, EngineLibrary, engine_library
from .library import LIBRARY, RECORD, KernelLibrary, available_cores, ort_glue, recorded
from .tensorrt import PLUGIN_LIBRARY, PLUGIN_RECORD, TENSORRT_VARIABLE, PluginLibrary, tensorrt_include

__all__ = [
    "ARCHITECTURES",
    "ARCHITECTURES_VARIABLE",
    "CPU_LIBRARY",
    "CPU_RECORD",
    "CPU_VARIABLE",
    "ENGINE_LIBRARY",
    "ENGINE_RECORD",
    "ENGINE_VARIABLE",
    "LIBRARY",
    "PLUGIN_LIBRARY",
    "PLUGIN_RECORD",
    "RECORD",
    "TENSORRT_VARIABLE",
    "Compiler",
    "CpuLibrary",
    "EngineLibrary",
    "KernelBuildError",
    "KernelLibrary",
    "NoKernelsError",
    "Plan",
    "PluginLibrary",
    "available_cores",
    "cpu_is_required",
    "cpu_library",
    "engine_library",
    "find_compiler",
    "is_asked_for",
    "is_required",
    "ort_glue",
    "plan",
    "recorded",
    "tensorrt_include",
    "wanted_architectures",
]
