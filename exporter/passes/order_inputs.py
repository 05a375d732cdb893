"""Put the input of matmuls into the order of the columns of their quantized weights.

GPTQ may quantize the columns of a matrix in another order than they have (act-order), and its blocks are of
columns in that order. The packed form keeps the columns so; a ``Gather`` on the input, one for all matmuls
that share it, makes up for it.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.passes.base import Inserter, PassResult, input_of, nodes_of
from q2export.exporter.passes.packed_operands import PackedPass, packed_operand, view


class OrderInputs(PackedPass):
    """A ``Gather`` before matmuls whose weights have their columns in another order."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Insert the gathers, and count the nodes that read them."""
        graph = model.graph
        ordered: dict[tuple[ir.Value, str], ir.Value] = {}
        matmuls = {*nodes_of(graph, "Gemm"), *nodes_of(graph, opspec.MOE.name, opspec.DOMAIN)}
        for node in [node for node in graph if node in matmuls]:  # the first of those that share comes first
            order = self._order(node)
            if order is None:
                continue
            source = input_of(node, 0)
            key = source, order
            if key not in ordered:
                ordered[key] = self._gather(graph, node, source, order)
            node.replace_input_with(0, ordered[key])
            result.matched += 1

    def _order(self, node: ir.Node) -> str | None:
        """Name of the order the matrices want that read the input of the node."""
        found = [packed_operand(self.packed, node, index) for index in range(len(node.inputs))]
        if node.op_type == opspec.MOE.name:  # the last matrix of each expert reads something else
            experts = found[len(opspec.MOE.inputs) :]
            found = [weight for index, weight in enumerate(experts) if index % 3 != 2]
        else:
            found = found[1:2]
        orders = {weight.input_order if weight is not None else None for weight in found}
        if len(orders) > 1:
            raise ExportError(f"{node.name}: the columns of its experts are not all in the same order")
        return orders.pop() if orders else None

    def _gather(self, graph: ir.Graph, node: ir.Node, source: ir.Value, order: str) -> ir.Value:
        columns = source.shape[-1] if source.shape is not None else None
        if not isinstance(columns, int):
            raise ExportError(f"{node.name}: its input has no known width")
        indices = view(graph, order, ir.DataType.INT32, [columns], [order])
        return Inserter(graph, node).op(
            "Gather", [source, indices], "ordered",
            attributes={"axis": -1}, dtype=source.dtype, shape=source.shape,
        )  # fmt: skip
