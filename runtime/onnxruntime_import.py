"""The only place that imports ONNX Runtime, with its telemetry off unless the environment says otherwise."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
"""Environment variable that ONNX Runtime reads while it is imported; ``1`` is off."""


def import_onnxruntime() -> ModuleType:
    """Import ``onnxruntime`` with its telemetry off.

    Left alone it writes a device id and a database under ``~/.cache/Microsoft`` and looks its collector up;
    ``disable_telemetry_events()`` comes too late for both. What the environment says already holds. A program
    that imports ``onnxruntime`` before q2export does decides itself.

    Raises:
        ImportError: it is not installed, or cannot be loaded.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    return import_module("onnxruntime")
