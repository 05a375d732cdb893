"""Our custom ops for ONNX Runtime on the CPU: ``libq2export_onnxruntime.so``, where it has been built."""

from __future__ import annotations

import logging
import mmap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.opspec import CPU_ONLY
from q2export.plugins.kernel_build import CPU_LIBRARY, CPU_RECORD, recorded

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger(__name__)


def register_ops(options: onnxruntime.SessionOptions, model: Path | bytes) -> None:
    """Let a session run our ops with our kernels.

    Without them it runs the ops' function bodies, which give the same result and widen every weight at every
    step; one warning per process says so.

    Args:
        options: of the session.
        model: path of its ONNX file, or the bytes; the library is not loaded for a graph of another target.

    Raises:
        Exception: one of ONNX Runtime's, which cannot load the library.
    """
    if not _has_ops(model):
        return
    if CPU_LIBRARY.is_file():
        options.register_custom_ops_library(str(CPU_LIBRARY))
    else:
        _warn_once(f"{CPU_LIBRARY}: {recorded(CPU_RECORD)}")


def _has_ops(model: Path | bytes) -> bool:
    """Whether the graph is one of the CPU target; others, in types our kernels lack, run as function bodies.

    Looks for the name of an op that no other target has: graphs are small, their weights elsewhere.
    """
    names = [spec.name.encode() for spec in CPU_ONLY]
    if isinstance(model, bytes):
        return any(name in model for name in names)
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(name) >= 0 for name in names)


@cache
def _warn_once(reason: str) -> None:
    _log.warning(
        "running without the CPU kernels of q2export: correct, and several times slower (%s); see "
        "docs/installation.md",
        reason,
    )
