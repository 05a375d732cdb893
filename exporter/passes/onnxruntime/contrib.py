"""ONNX Runtime's contrib ops: their domain, and what several passes say of them."""

from __future__ import annotations

from q2export.exporter.graph.nodes import AttributeValue

MICROSOFT = "com.microsoft"

SWIGLU: dict[str, AttributeValue] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # gate and up rows alternate
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}
"""Attributes of ``MoE`` and ``QMoE`` for Qwen2's experts."""
