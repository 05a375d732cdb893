"""Drop the head: the graph then fills the cache and gives nothing else.

What only the logits needed goes with it: the head, and of the last layer all but its keys and values.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts.step import LOGITS, LOGITS_INDICES
from q2export.errors import ExportError
from q2export.exporter.passes.base import Pass, PassResult
from q2export.exporter.passes.remove_unused import RemoveUnused

_OUTPUT, _INPUT = LOGITS.name, LOGITS_INDICES.name


class DropLogits(Pass):
    """Remove the output ``logits``, the input ``logits_indices``, and what nothing else reads."""

    def requires(self, model: ir.Model) -> None:
        """Both must be there."""
        for kind, values, name in (
            ("output", model.graph.outputs, _OUTPUT),
            ("input", model.graph.inputs, _INPUT),
        ):
            if not any(value.name == name for value in values):
                raise ExportError(f"the graph has no {kind} {name!r}")

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Remove, and count the nodes that went."""
        graph = model.graph
        graph.outputs[:] = [value for value in graph.outputs if value.name != _OUTPUT]
        result.matched = RemoveUnused()(model).matched
        graph.inputs[:] = [value for value in graph.inputs if value.name != _INPUT]

    def ensures(self, model: ir.Model) -> None:
        """Nothing that is left reads the positions of the logits."""
        for node in model.graph:
            if any(value is not None and value.name == _INPUT for value in node.inputs):
                raise ExportError(f"{node.name}: reads {_INPUT!r} of a graph without logits")
