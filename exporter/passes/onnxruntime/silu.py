"""``x * sigmoid(x)`` -> ``com.microsoft.QuickGelu`` with alpha 1: the same function in one pass over x."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass, PassResult, input_of, insert, nodes_of, only_consumer, replace
from q2export.exporter.passes.onnxruntime.attention import MICROSOFT


class FuseSilu(Pass):
    """Replace ``Mul(x, Sigmoid(x))``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every such pair whose sigmoid is read once."""
        graph = model.graph
        for sigmoid in nodes_of(graph, "Sigmoid"):
            matmul = only_consumer(sigmoid.outputs[0])
            x = input_of(sigmoid, 0)
            if matmul is None or matmul.op_type != "Mul" or x not in matmul.inputs:
                continue
            fused = insert(
                graph, matmul, "QuickGelu", [x], name=matmul.name or "silu", domain=MICROSOFT,
                attributes={"alpha": 1.0}
            )  # fmt: skip
            replace(graph, matmul, fused.outputs)
            graph.remove(sigmoid, safe=True)
            result.matched += 1
        if result.matched:
            graph.opset_imports[MICROSOFT] = 1
