"""Put the bodies of the remaining custom ops into the graph, and drop the functions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.passes.base import Pass, PassResult


class InlineFunctions(Pass):
    """For targets that know none of the custom ops: what was not lowered to a native op runs as its body."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Inline every call."""
        result.matched = sum(node.domain == opspec.DOMAIN for node in model.graph)
        if result.matched:
            InlinePass()(model)
        model.functions.clear()
        model.graph.opset_imports.pop(opspec.DOMAIN, None)

    def ensures(self, model: ir.Model) -> None:
        """No custom op is left."""
        for node in model.graph:
            if node.domain == opspec.DOMAIN:
                raise ExportError(f"{node.name}: {node.op_type} has no function body")
