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
    from q2export.api import build, export, plan, quality_report, quantize, repack, verify
    from q2export.errors import (
        CalibrationError,
        CancelledError,
        CheckpointError,
        ClosedError,
        ConfigError,
        DeadlineError,
        ExportError,
        GenerationError,
        MissingDependencyError,
        OptionError,
        PackageError,
        ParityError,
        ProfileError,
        Q2ExportError,
        QueueFullError,
    )
    from q2export.runtime import load
    from q2export.runtime.engine import Engine
    from q2export.runtime.scheduler import Scheduler, SchedulerOptions

__all__ = [
    "CalibrationError",
    "CancelledError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DeadlineError",
    "Engine",
    "ExportError",
    "GenerationError",
    "MissingDependencyError",
    "OptionError",
    "PackageError",
    "ParityError",
    "ProfileError",
    "Q2ExportError",
    "QueueFullError",
    "Scheduler",
    "SchedulerOptions",
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


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # What loads engines does not wait for what builds them.
    apart = {
        "Engine": "q2export.runtime.engine",
        "Scheduler": "q2export.runtime.scheduler",
        "SchedulerOptions": "q2export.runtime.scheduler",
        "load": "q2export.runtime",
    }
    module = apart.get(name, "q2export.errors" if name.endswith("Error") else "q2export.api")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    """Return the names of the public API."""
    return sorted(__all__)
