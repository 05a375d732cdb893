"""``RMSNormalization(Add(a, b))`` -> ``com.microsoft.SkipSimplifiedLayerNormalization``."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import (
    Pass,
    PassResult,
    attribute_float,
    input_of,
    insert,
    nodes_of,
    replace,
)
from q2export.exporter.passes.ort_attention import MICROSOFT


class FuseSkipNormalization(Pass):
    """The residual sum and the normalisation that reads it as one op, which also yields the sum."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Fuse every normalisation of a sum of two equally shaped matrices."""
        graph = model.graph
        for norm in nodes_of(graph, "RMSNormalization"):
            added = input_of(norm, 0)
            add = added.producer()
            if add is None or add.op_type != "Add":
                continue
            if any(
                value is None or value.shape is None or value.shape != added.shape for value in add.inputs
            ):
                result.refused.append(f"{norm.name}: the sum broadcasts or its shapes are unknown")
                continue
            outputs = [ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()]
            fused = insert(
                graph,
                norm,
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, input_of(norm, 1)],
                name=f"{(norm.name or '').rsplit('/', 1)[0]}/SkipSimplifiedLayerNormalization",
                domain=MICROSOFT,
                attributes={"epsilon": attribute_float(norm, "epsilon")},
                outputs=outputs,
            )
            for unused in fused.outputs[1:3]:
                unused.name = ""
            replace(graph, norm, [fused.outputs[0]])
            # Everything that reads the sum comes after it in the residual stream, so after this node too.
            replace(graph, add, [fused.outputs[3]])
            result.matched += 1
        if result.matched:
            graph.opset_imports[MICROSOFT] = 1
