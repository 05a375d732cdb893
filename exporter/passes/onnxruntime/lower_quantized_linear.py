"""``Gemm`` with a quantized weight -> an op over the codes as stored: ``Q2QuantizedLinear``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace as replace_fields

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import (
    Inserter,
    PassResult,
    attribute_int,
    define,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.passes.packed_operands import (
    PackedOpPass,
    PackedPass,
    kernel_operands,
    packed_operand,
    require_all_lowered,
)


class LowerQuantizedGemm(PackedPass):
    """``Gemm`` with a quantized weight becomes whatever op multiplies with codes."""

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
                replace(graph, gemm, [self._linear(Inserter(graph, gemm), gemm, weight)])
            else:
                self._lower_alternating(graph, gemm, weight, alternating)
            result.matched += 1

    @abstractmethod
    def _linear(self, emit: Inserter, gemm: ir.Node, weight: PackedWeight) -> ir.Value:
        """The product with the rows of ``weight``, bias included."""

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
            both = self._linear(emit.under("both"), gemm, whole)
            columns = emit.int64([-1, weight.shape[0], weight.row_step])
            matmuls[key] = emit.op("Reshape", [both, columns], "columns")
        index = emit.int64(weight.first_row)
        replace(graph, gemm, [emit.op("Gather", [matmuls[key], index], attributes={"axis": 2})])

    def ensures(self, model: ir.Model) -> None:
        """No quantized weight is read as floating point."""
        require_all_lowered(model.graph, self.packed)


class LowerQuantizedLinear(PackedOpPass, LowerQuantizedGemm):
    """``Gemm`` with a quantized weight becomes ``Q2QuantizedLinear``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every matmul with a quantized weight."""
        super().rewrite(model, result)
        if result.matched:
            define(model, function_for(opspec.QUANTIZED_LINEAR, scheme=self.scheme))

    def _linear(self, emit: Inserter, gemm: ir.Node, weight: PackedWeight) -> ir.Value:
        matrix = kernel_operands(emit.graph, weight.tensor, [weight])
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        return emit.op(
            opspec.QUANTIZED_LINEAR.name,
            [input_of(gemm, 0), matrix.codes, matrix.scales, matrix.zero_points, bias],
            domain=opspec.DOMAIN,
            attributes=self.attributes,
        )
