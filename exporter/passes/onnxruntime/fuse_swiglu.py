"""``gate * sigmoid(gate) * up`` -> ``Q2SwiGLU``: one pass over both instead of three."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    define,
    input_of,
    nodes_of,
    only_consumer,
    replace,
)


class FuseSwiGLU(Pass):
    """Replace ``Mul(Mul(gate, Sigmoid(gate)), up)`` of two tensors of one shape."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every such triple whose parts nothing else reads."""
        graph = model.graph
        for sigmoid in nodes_of(graph, "Sigmoid"):
            gate = input_of(sigmoid, 0)
            silu = only_consumer(sigmoid.outputs[0])
            if silu is None or silu.op_type != "Mul" or gate not in silu.inputs:
                continue
            product = only_consumer(silu.outputs[0])
            up = _other(product, silu.outputs[0])
            if product is None or up is None or up.shape is None or up.shape != gate.shape:
                result.refused.append(f"{silu.name}: it is not multiplied by a tensor of its shape")
                continue
            fused = Inserter(graph, product).op(opspec.SWIGLU.name, [gate, up], domain=opspec.DOMAIN)
            replace(graph, product, [fused])
            graph.remove([silu, sigmoid], safe=True)
            result.matched += 1
        if result.matched:
            define(model, function_for(opspec.SWIGLU))


def _other(product: ir.Node | None, value: ir.Value) -> ir.Value | None:
    """The other factor of a ``Mul``."""
    if product is None or product.op_type != "Mul" or list(product.inputs).count(value) != 1:
        return None
    return next(each for each in product.inputs if each is not value)
