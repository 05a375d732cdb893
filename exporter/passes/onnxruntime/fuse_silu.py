"""``x * sigmoid(x)`` -> ``com.microsoft.QuickGelu`` with alpha 1: the same function in one pass over x."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    input_of,
    nodes_of,
    only_consumer,
    replace,
)
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT


class FuseSilu(Pass):
    """Replace ``Mul(x, Sigmoid(x))``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every such pair whose sigmoid is read once."""
        graph = model.graph
        for sigmoid in nodes_of(graph, "Sigmoid"):
            mul, x = only_consumer(sigmoid.outputs[0]), input_of(sigmoid, 0)
            if mul is None or mul.op_type != "Mul" or x not in mul.inputs:
                continue
            fused = Inserter(graph, mul).op("QuickGelu", [x], domain=MICROSOFT, attributes={"alpha": 1.0})
            replace(graph, mul, [fused])
            graph.remove(sigmoid, safe=True)
            result.matched += 1
