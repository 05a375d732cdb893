"""``Gemm`` with a quantized weight -> a product that ONNX Runtime makes without dequantizing it."""

from __future__ import annotations

from dataclasses import replace as replace_fields

import numpy as np
import onnx_ir as ir

from q2export.exporter.checkpoint.packed import StoredWeight
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
from q2export.exporter.passes.onnxruntime.attention import MICROSOFT
from q2export.exporter.passes.onnxruntime.matmuls import Product
from q2export.exporter.passes.stored_operands import StoredWeights, require_all_lowered, stored_operand


class LowerQuantizedProducts(Pass):
    """Attributes:
    stored: the quantized weights.
    product: how they are multiplied.
    """

    def __init__(self, stored: StoredWeights, product: Product) -> None:
        self.stored = stored
        self.product = product

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
                product = self.product(graph, gemm, input_of(gemm, 0), [weight], bias_of(gemm), _path(gemm))
                replace(graph, gemm, [product])
            else:
                self._lower_alternating(graph, gemm, weight, alternating)
            result.matched += 1
        if result.matched:
            graph.opset_imports[MICROSOFT] = 1

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
            whole = replace_fields(weight, shape=(weight.rows, weight.shape[1]), first_row=0, row_step=1)
            both = self.product(graph, gemm, input_of(gemm, 0), [whole], bias_of(gemm), f"{path}/both")
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


def bias_of(gemm: ir.Node) -> ir.Value | None:
    """The third input of a ``Gemm``."""
    return gemm.inputs[2] if len(gemm.inputs) > 2 else None


def _path(node: ir.Node) -> str:
    return (node.name or "").rsplit("/", 1)[0]
