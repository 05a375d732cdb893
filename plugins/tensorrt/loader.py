"""Which TensorRT builds engines here, the full ``tensorrt`` or TensorRT-RTX (imported, fit to parse)."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Literal, get_args

from q2export.contracts.commands import install_command
from q2export.errors import MissingDependencyError
from q2export.plugins.tensorrt import stub_library
from q2export.strict.suggest import nearest

Builder = Literal["auto", "tensorrt", "rtx"]

_FULL_MODULES = ("tensorrt",)
OLDEST_TENSORRT = (10, 15)
"""The first full TensorRT that imports RMSNormalization and tells aliased inputs (``pyproject.toml``)."""

_RTX_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")  # the wheel from PyPI; the one in NVIDIA's archive
_RTX_LIBRARY = "libtensorrt_rtx.so"
_RTX_VERSIONED_LIBRARY = "libtensorrt_rtx.so.1"


def import_tensorrt(builder: str = "auto") -> ModuleType:
    """Import the TensorRT that ``builder`` names.

    Args:
        builder: ``tensorrt``, ``rtx``, or ``auto``: ``tensorrt`` where it imports and a GPU is present (it
            cannot build without one), TensorRT-RTX otherwise.

    Returns:
        The module; both offer the same API. :func:`is_rtx` tells them apart.

    Raises:
        MissingDependencyError: it is not installed, too old, or cannot be loaded here; names the extra.
        ValueError: there is no such builder.
    """
    if builder not in get_args(Builder):
        raise ValueError(f"no builder {builder!r}{nearest(builder, get_args(Builder))}")
    reasons: list[str] = []
    if builder == "tensorrt" or (builder == "auto" and gpu_present()):
        module = _first_importable(_FULL_MODULES, reasons)
        if module is not None and _is_recent(module, reasons):
            return module
    if builder != "tensorrt":
        module = _first_importable(_RTX_MODULES, reasons)
        if module is not None:
            _cure_rtx_parser()
            return module
    wanted = {
        "auto": "neither tensorrt nor TensorRT-RTX",
        "rtx": "TensorRT-RTX not",
        "tensorrt": "tensorrt not",
    }
    rtx = f"{install_command('rtx')} (builds without a GPU)"
    full = f"{install_command('tensorrt')}, with NVIDIA's own package index (needs an NVIDIA GPU)"
    hints = {
        "auto": f"{rtx}, or {full}",
        "rtx": rtx,
        "tensorrt": f"{full}, or {rtx} and choose the builder rtx",
    }
    raise MissingDependencyError(
        f"{wanted[builder]} usable here: {'; '.join(reasons)}. Install it: {hints[builder]}"
    )


def is_rtx(trt: ModuleType) -> bool:
    """Whether a module from :func:`import_tensorrt` is TensorRT-RTX."""
    return trt.__name__ in _RTX_MODULES


def gpu_present() -> bool:
    """Whether the CUDA driver is loadable and sees a device that this process may use."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _first_importable(names: Sequence[str], reasons: list[str]) -> ModuleType | None:
    """Import the first of ``names`` that can be; why the others cannot is appended to ``reasons``."""
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the package is there, one of its libraries is not
            reasons.append(f"import {name}: {error}")
    return None


def _is_recent(module: ModuleType, reasons: list[str]) -> bool:
    """Whether the full TensorRT is one that can build and run our engines; if not, ``reasons`` says so."""
    version = str(module.__version__)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_TENSORRT:
        return True
    oldest = ".".join(map(str, OLDEST_TENSORRT))
    reasons.append(f"tensorrt {version} is installed, {oldest} or later is needed")
    return False


def _cure_rtx_parser() -> None:
    """Keep the ONNX parser of the RTX wheel from ending the process at the first plugin node.

    The parser looks for the plugin registry in ``dlopen("libtensorrt_rtx.so")``, a name the wheel (1.7.1)
    does not carry: its library is ``libtensorrt_rtx.so.1``. The failure is an exception that nothing catches.
    """
    if sys.platform == "linux":
        try:
            stub_library.provide(_RTX_LIBRARY, _RTX_VERSIONED_LIBRARY)
        except OSError as error:
            raise MissingDependencyError(
                f"the ONNX parser of TensorRT-RTX needs {_RTX_LIBRARY}, which cannot be provided: {error}; "
                f"put a link of that name to {_RTX_VERSIONED_LIBRARY} on LD_LIBRARY_PATH"
            ) from error
