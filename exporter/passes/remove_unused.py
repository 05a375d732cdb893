"""Drop what nothing reads: nodes, functions; such as position ids where a kernel counts them itself."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from q2export.exporter.passes.base import Pass, PassResult


class RemoveUnused(Pass):
    """Graph inputs and outputs stay; ``bind`` refuses a graph that no longer reads every parameter."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Remove, and count the nodes that went."""
        before = model.graph.num_nodes()
        RemoveUnusedNodesPass()(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        result.matched = before - model.graph.num_nodes()
