"""The TensorRT lowering: rotation and attention become one plugin node; every node keeps its function body.

TensorRT takes ``Q2*`` nodes to plugins of the namespace in their ``plugin_namespace`` attribute; any other
runtime runs the same file through the functions.
"""

from __future__ import annotations

from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes() -> list[Pass]:
    """Return the passes, in order."""
    return [FuseRotaryAttention(), RemoveUnused()]
