"""``Gemm`` with a quantized weight -> ``com.microsoft.MatMulNBits``, which reads the codes themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from q2export.exporter.passes.base import (
    Pass,
    PassResult,
    attribute_int,
    constant,
    input_of,
    insert,
    nodes_of,
    replace,
)
from q2export.exporter.passes.ort_attention import MICROSOFT
from q2export.exporter.passes.stored_operands import (
    StoredWeights,
    kernel_operands,
    require_all_lowered,
    stored_operand,
)
from q2export.exporter.quantization.stored import StoredWeight

FLOAT32_ACTIVATIONS, INT8_ACTIVATIONS = 1, 4
"""Values of ``accuracy_level``; with the second one, activations are rounded to int8, block by block."""


class LowerQuantizedProducts(Pass):
    """Attributes:
    stored: the quantized weights.
    accuracy_level: how activations are multiplied.
    """

    def __init__(self, stored: StoredWeights, accuracy_level: int) -> None:
        self.stored = stored
        self.accuracy_level = accuracy_level

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every product with a quantized weight."""
        graph = model.graph
        alternating: dict[tuple[ir.Value, str], ir.Value] = {}
        for gemm in nodes_of(graph, "Gemm"):
            weight = stored_operand(self.stored, gemm, 1)
            if weight is None:
                continue
            if not attribute_int(gemm, "transB"):
                result.refused.append(f"{gemm.name}: its weight is not [out, in]")
                continue
            if weight.row_step == 1:
                replace(graph, gemm, [self._product(graph, gemm, [weight], _path(gemm))])
            else:
                self._lower_alternating(graph, gemm, weight, alternating)
            result.matched += 1
        if result.matched:
            graph.opset_imports[MICROSOFT] = 1

    def _product(
        self, graph: ir.Graph, gemm: ir.Node, weights: Sequence[StoredWeight], path: str
    ) -> ir.Value:
        """The product of the input of ``gemm`` with all rows of the tensors that hold ``weights``."""
        scheme, columns = weights[0].scheme, weights[0].shape[1]
        matrix = kernel_operands(graph, _matrix_name(weights), weights, by_block=True)
        bias = [None, input_of(gemm, 2)] if len(gemm.inputs) > 2 else []  # before it, a deprecated input
        product = insert(
            graph,
            gemm,
            "MatMulNBits",
            [input_of(gemm, 0), matrix.codes, matrix.scales, matrix.zero_points, *bias],
            name=f"{path}/MatMulNBits",
            domain=MICROSOFT,
            attributes={
                "N": sum(weight.rows for weight in weights),
                "K": columns,
                "bits": scheme.bits,
                "block_size": scheme.block_size,
                "accuracy_level": self.accuracy_level,
            },
        )
        return product.outputs[0]

    def _lower_alternating(
        self,
        graph: ir.Graph,
        gemm: ir.Node,
        weight: StoredWeight,
        products: dict[tuple[ir.Value, str], ir.Value],
    ) -> None:
        """Multiply with the whole tensor, once, and take every ``row_step``-th column of the result."""
        path, step = _path(gemm), weight.row_step
        key = input_of(gemm, 0), weight.tensor
        if key not in products:
            both = self._product(graph, gemm, [weight], f"{path}/both")
            shape = constant(
                graph,
                f"const/shape_m1_{weight.shape[0]}_{step}",
                ir.tensor(np.array([-1, weight.shape[0], step], dtype=np.int64)),
            )
            products[key] = insert(graph, gemm, "Reshape", [both, shape], name=f"{path}/columns").outputs[0]
        index = constant(
            graph,
            f"const/index_{weight.first_row}",
            ir.tensor(np.array(weight.first_row, dtype=np.int64)),
        )
        part = insert(
            graph, gemm, "Gather", [products[key], index], name=f"{path}/Gather", attributes={"axis": 2}
        )
        replace(graph, gemm, part.outputs)

    def ensures(self, model: ir.Model) -> None:
        """No quantized weight is read as floating point."""
        require_all_lowered(model.graph, self.stored)


def _path(node: ir.Node) -> str:
    return (node.name or "").rsplit("/", 1)[0]


def _matrix_name(weights: Sequence[StoredWeight]) -> str:
    return weights[0].tensor
