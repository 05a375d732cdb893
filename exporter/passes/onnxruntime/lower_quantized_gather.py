"""``Gather`` of rows of a quantized embedding -> ``Q2QuantizedGather``, which reads those rows alone."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import Inserter, PassResult, define, input_of, nodes_of, replace
from q2export.exporter.passes.packed_operands import (
    PackedPass,
    kernel_operands,
    packed_operand,
)


class LowerQuantizedGather(PackedPass):
    """``Gather`` of a quantized weight becomes ``Q2QuantizedGather``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every gather of a quantized weight."""
        graph = model.graph
        for gather in nodes_of(graph, "Gather"):
            weight = packed_operand(self.packed, gather, 0)
            if weight is None:
                continue
            table = kernel_operands(graph, weight.name, [weight])
            rows = Inserter(graph, gather).op(
                opspec.QUANTIZED_GATHER.name,
                [input_of(gather, 1), table.codes, table.scales, table.zero_points],
                domain=opspec.DOMAIN,
                attributes={"bits": weight.scheme.bits, "block_size": weight.scheme.block_size},
            )
            replace(graph, gather, [rows])
            define(model, function_for(opspec.QUANTIZED_GATHER, scheme=weight.scheme))
            result.matched += 1
