"""``Gather`` of rows of a quantized embedding -> ``com.microsoft.GatherBlockQuantized``."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Inserter, PassResult, input_of, nodes_of, replace
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT
from q2export.exporter.passes.packed_operands import (
    PackedPass,
    kernel_operands,
    packed_operand,
)


class LowerGatherBlockQuantized(PackedPass):
    """Only the rows of the tokens are dequantized.

    Its scales are of the type that the rows are wanted in. Codes are given as uint8: there the op takes the
    zero point of a symmetric weight to be in the middle, of uint4 to be zero.
    """

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every gather of a quantized weight."""
        graph = model.graph
        for gather in nodes_of(graph, "Gather"):
            weight = packed_operand(self.packed, gather, 0)
            if weight is None:
                continue
            dtype = gather.outputs[0].dtype or ir.DataType.FLOAT
            table = kernel_operands(graph, weight.name, [weight], scale_dtype=dtype)
            zero_points = [] if table.zero_points is None else [table.zero_points]
            rows = Inserter(graph, gather).op(
                "GatherBlockQuantized",
                [table.codes, input_of(gather, 1), table.scales, *zero_points],
                domain=MICROSOFT,
                attributes={
                    "bits": weight.scheme.bits,
                    "block_size": weight.scheme.block_size,
                    "gather_axis": 0,
                    "quantize_axis": 1,
                },
            )
            replace(graph, gather, [rows])
            result.matched += 1
