"""What the emission of traced programs leaves behind, taken out before anything else looks at the graph."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import run_passes
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.remove_unused import RemoveUnused


def clean(model: ir.Model) -> ir.Model:
    """Merge reshapes and drop what nothing reads, in place; the result is the canonical graph."""
    run_passes(model, [MergeReshapes(), RemoveUnused()])
    return model
