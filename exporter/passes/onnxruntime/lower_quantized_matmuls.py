"""``Gemm`` with a quantized weight -> a matmul that ONNX Runtime makes without dequantizing it."""

from __future__ import annotations

from dataclasses import replace as replace_fields

import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.passes.base import (
    Inserter,
    PassResult,
    attribute_int,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.passes.onnxruntime.matmul_forms import MatMul
from q2export.exporter.passes.packed_operands import (
    PackedPass,
    PackedWeights,
    packed_operand,
    require_all_lowered,
)


class LowerQuantizedMatMuls(PackedPass):
    """``Gemm`` with a quantized weight becomes a matmul with its codes.

    Args:
        packed: the quantized weights.
        matmul: how they are multiplied.
    """

    def __init__(self, packed: PackedWeights, matmul: MatMul) -> None:
        super().__init__(packed)
        self.matmul = matmul

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every matmul with a quantized weight."""
        graph = model.graph
        alternating: dict[tuple[ir.Value, str], ir.Value] = {}
        for gemm in nodes_of(graph, "Gemm"):
            weight = packed_operand(self.packed, gemm, 1)
            if weight is None:
                continue
            if not attribute_int(gemm, "transB"):
                result.refused.append(f"{gemm.name}: its weight is not [out, in]")
                continue
            if weight.row_step == 1:
                matmul = self.matmul(Inserter(graph, gemm), input_of(gemm, 0), [weight], bias_of(gemm))
                replace(graph, gemm, [matmul])
            else:
                self._lower_alternating(graph, gemm, weight, alternating)
            result.matched += 1

    def _lower_alternating(
        self,
        graph: ir.Graph,
        gemm: ir.Node,
        weight: PackedWeight,
        matmuls: dict[tuple[ir.Value, str], ir.Value],
    ) -> None:
        """Multiply with the whole tensor, once, and take every ``row_step``-th column of the result."""
        emit = Inserter(graph, gemm)
        key = input_of(gemm, 0), weight.tensor
        if key not in matmuls:
            whole = replace_fields(weight, shape=(weight.rows, weight.shape[1]), first_row=0, row_step=1)
            both = self.matmul(emit.under("both"), input_of(gemm, 0), [whole], bias_of(gemm))
            columns = emit.int64([-1, weight.shape[0], weight.row_step])
            matmuls[key] = emit.op("Reshape", [both, columns], "columns")
        index = emit.int64(weight.first_row)
        replace(graph, gemm, [emit.op("Gather", [matmuls[key], index], attributes={"axis": 2})])

    def ensures(self, model: ir.Model) -> None:
        """No quantized weight is read as floating point."""
        require_all_lowered(model.graph, self.packed)


def bias_of(gemm: ir.Node) -> ir.Value | None:
    """The third input of a ``Gemm``."""
    return gemm.inputs[2] if len(gemm.inputs) > 2 else None
