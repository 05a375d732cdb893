"""Quantized query, key and value projections of a layer -> one matmul and a packed attention input.

One matmul starts one parallel loop and rounds its input once instead of three times, and
``GroupQueryAttention`` takes the fused result as it is. The three matrices lie next to each other in a
quantized checkpoint, so the fused one is read in place. Gate and up stay apart: fused they would need a
``Split``, which costs what the matmul saves (``benchmarks/results/ort_quantized.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.passes.base import (
    Inserter,
    PassResult,
    attribute_int,
    input_of,
    nodes_of,
    only_consumer,
    path_of,
)
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT
from q2export.exporter.passes.onnxruntime.lower_quantized_matmuls import bias_of
from q2export.exporter.passes.onnxruntime.matmul_forms import MatMul
from q2export.exporter.passes.packed_operands import PackedPass, PackedWeights, packed_operand, view
from q2export.exporter.weights.stack import Form

_PROJECTIONS = 3


@dataclass(frozen=True)
class _Projection:
    """``Reshape(Gemm(x, weight, bias))``, read by the attention alone."""

    reshape: ir.Node
    gemm: ir.Node
    weight: PackedWeight

    @property
    def bias(self) -> ir.Value | None:
        return bias_of(self.gemm)


class PackQueryKeyValue(PackedPass):
    """Query, key and value projections of an attention become one matmul and one input.

    Args:
        packed: the quantized weights.
        matmul: how they are multiplied.
    """

    def __init__(self, packed: PackedWeights, matmul: MatMul) -> None:
        super().__init__(packed)
        self.matmul = matmul

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Fuse the projections of every attention where all three are quantized alike."""
        graph = model.graph
        for attention in nodes_of(graph, "GroupQueryAttention", MICROSOFT):
            found = [self._projection(attention, index) for index in range(_PROJECTIONS)]
            projections = [projection for projection in found if projection is not None]
            if len(projections) < _PROJECTIONS:
                result.refused.append(f"{attention.name}: not all of query, key and value are quantized")
            elif not _alike(projections):
                result.refused.append(f"{attention.name}: query, key and value are not quantized alike")
            else:
                self._fuse(graph, attention, projections)
                result.matched += 1

    def _projection(self, attention: ir.Node, index: int) -> _Projection | None:
        reshape = input_of(attention, index).producer()
        if reshape is None or reshape.op_type != "Reshape" or only_consumer(reshape.outputs[0]) is None:
            return None
        gemm = input_of(reshape, 0).producer()
        if gemm is None or gemm.op_type != "Gemm" or only_consumer(gemm.outputs[0]) is None:
            return None
        weight = packed_operand(self.packed, gemm, 1)
        if weight is None or weight.row_step != 1 or not attribute_int(gemm, "transB"):
            return None
        return _Projection(reshape, gemm, weight)

    def _fuse(self, graph: ir.Graph, attention: ir.Node, projections: Sequence[_Projection]) -> None:
        first = projections[0]
        path = path_of(first.gemm).rsplit(".", 1)[0] + ".qkv_proj"
        weights = [projection.weight for projection in projections]
        rows = sum(weight.rows for weight in weights)
        biases = [projection.bias.name or "" for projection in projections if projection.bias is not None]
        bias = view(graph, f"{path}.bias", ir.DataType.FLOAT, [rows], biases, Form.VALUES) if biases else None
        matmul = self.matmul(Inserter(graph, first.gemm, path), input_of(first.gemm, 0), weights, bias)
        matmul.name = path
        old, flat = first.gemm.outputs[0], first.reshape.outputs[0].shape
        matmul.type = old.type
        matmul.shape = ir.Shape([old.shape[0], rows]) if old.shape is not None else None
        packed = Inserter(graph, first.reshape, path).op(
            "Reshape",
            [matmul, input_of(first.reshape, 1)],
            "packed",
            dtype=matmul.dtype,
            shape=ir.Shape([flat[0], flat[1], rows]) if flat is not None else None,
        )
        attention.replace_input_with(0, packed)
        for index in range(1, _PROJECTIONS):
            attention.replace_input_with(index, None)
        for projection in projections:
            graph.remove([projection.reshape, projection.gemm], safe=True)


def _alike(projections: Sequence[_Projection]) -> bool:
    """Whether one matmul can do the work of all: same input, same blocks, biases all or none."""
    first = projections[0]
    return all(
        input_of(one.gemm, 0) is input_of(first.gemm, 0)
        and one.weight.scheme == first.weight.scheme
        and (one.bias is None) == (first.bias is None)
        for one in projections
    )
