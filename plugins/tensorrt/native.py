"""The plugins in C++, ``libq2export_plugins.so``, in place of those in Python: what engines should run on.

A call of a plugin in Python costs microseconds, and a step has one for each attention and each mixture. For
building, the Python ones say more of what is wrong with a node.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from types import ModuleType

from q2export.contracts import opspec
from q2export.errors import MissingDependencyError
from q2export.plugins import kernel_build
from q2export.plugins.tensorrt.fields import declared
from q2export.plugins.tensorrt.registry import deregister, register

_log = logging.getLogger(__name__)

LIBRARY = kernel_build.PLUGIN_LIBRARY
"""Where the build puts the library."""

_REBUILD = "in the source tree: TENSORRT_ROOT=... python -m q2export.plugins.kernel_build tensorrt"


def register_to_run(trt: ModuleType) -> None:
    """Register the plugins in C++ where they are built, those in Python otherwise.

    Creators in Python that a build has left in the registry give way.

    Args:
        trt: the module that :func:`q2export.plugins.tensorrt.loader.import_tensorrt` returned.

    Raises:
        MissingDependencyError: the library is there, but cannot be loaded, or has other ops than this
            version. ExportError: TensorRT refuses a creator.
    """
    if not LIBRARY.is_file():
        _log.info("plugins in Python: %s", kernel_build.recorded(kernel_build.PLUGIN_RECORD))
        register(trt)
        return
    deregister(trt)
    _loaded(LIBRARY)
    _check(trt)
    _log.info("plugins in C++: %s", LIBRARY)


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    """The library; loading it registers its creators, once."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingDependencyError(
            f"the TensorRT plugins in C++ cannot be loaded: {error}; remove or rebuild them, {_REBUILD}"
        ) from error


def _check(trt: ModuleType) -> None:
    """Hold the creators against the specification of this version."""
    registry = trt.get_plugin_registry()
    for spec in opspec.ALL:
        creator = registry.get_creator(spec.name, opspec.PLUGIN_VERSION, opspec.PLUGIN_NAMESPACE)
        wanted = [(field.name, field.type) for field in declared(trt, spec)]
        found = None if creator is None else [(field.name, field.type) for field in creator.field_names]
        if found != wanted:
            raise MissingDependencyError(
                f"{LIBRARY} has {_shown(found)} for {spec.name}, expected {_shown(wanted)}; "
                f"rebuild it, {_REBUILD}"
            )


def _shown(fields: list[tuple[str, object]] | None) -> str:
    return "no plugin" if fields is None else f"attributes {', '.join(name for name, _ in fields) or 'none'}"
