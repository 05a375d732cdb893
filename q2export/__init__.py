"""q2export: Qwen2 and Qwen2-MoE checkpoints to production engines.

The public API::

    import q2export

    result = q2export.build("path/to/checkpoint", "path/to/package", profile="cpu")
    engine = q2export.load(result.package)

Names are resolved on first use, so that importing ``q2export`` loads neither NumPy nor PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from q2export.version import __version__

if TYPE_CHECKING:
    from q2export.api import build, export, load, plan, quality_report, quantize, repack, verify
    from q2export.errors import Q2ExportError

__all__ = [
    "Q2ExportError",
    "__version__",
    "build",
    "export",
    "load",
    "plan",
    "quality_report",
    "quantize",
    "repack",
    "verify",
]

_MODULE_OF = {
    "Q2ExportError": "q2export.errors",
    "build": "q2export.api",
    "export": "q2export.api",
    "load": "q2export.api",
    "plan": "q2export.api",
    "quality_report": "q2export.api",
    "quantize": "q2export.api",
    "repack": "q2export.api",
    "verify": "q2export.api",
}


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """Return the names of the public API."""
    return sorted(__all__)
