"""ONNX Runtime's contrib ops."""

from __future__ import annotations

MICROSOFT = "com.microsoft"
"""Their domain."""
