"""The positions whose logits are asked for, selected without a number that the host computes.

The canonical graph adds ``row * sequence`` to the positions, and ``sequence`` comes from ``Shape``: ONNX
Runtime computes shapes on the CPU and would copy that one number to the GPU within every step. A CUDA graph
would go on copying from memory that is no longer its own.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from q2export.contracts.step import INPUT_IDS, LOGITS_INDICES
from q2export.errors import ExportError
from q2export.exporter.passes.base import Inserter, Pass, PassResult, input_of, only_consumer, replace

_HIDDEN = 2  # the axis
_INT64 = ir.DataType.INT64


class SelectLogits(Pass):
    """``Gather`` of rows of ``[batch * sequence, hidden]`` becomes ``GatherElements`` of each sequence."""

    def requires(self, model: ir.Model) -> None:
        """The positions are an input."""
        if LOGITS_INDICES.name not in {value.name for value in model.graph.inputs}:
            raise ExportError(f"the graph has no input {LOGITS_INDICES.name!r}")

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Find the gather that the positions lead to, and replace it."""
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        positions = inputs[LOGITS_INDICES.name]
        gather = _gather_behind(positions)
        if gather is None:
            result.refused.append("the positions lead to no Gather of hidden states")
            return
        emit, hidden = Inserter(graph, gather), input_of(gather, 0)
        if hidden.shape is None or not isinstance(size := hidden.shape[-1], int):
            result.refused.append(f"{gather.name}: the size of its hidden states is not known")
            return
        sizes = emit.op(
            "Shape",
            [inputs[INPUT_IDS.name]],
            "sizes",
            attributes={"start": 0, "end": 2},
            dtype=_INT64,
        )
        shape = emit.op("Concat", [sizes, emit.int64([size])], "shape", attributes={"axis": 0}, dtype=_INT64)
        rows = emit.op("Reshape", [hidden, shape], "rows", dtype=hidden.dtype)
        column = emit.op("Unsqueeze", [positions, emit.int64([_HIDDEN])], "column", dtype=_INT64)
        index = emit.op("Expand", [column, emit.int64([1, 1, size])], "index", dtype=_INT64)
        chosen = emit.op("GatherElements", [rows, index], attributes={"axis": 1}, dtype=hidden.dtype)
        flat = emit.op("Reshape", [chosen, emit.int64([-1, size])], "chosen", dtype=hidden.dtype)
        replace(graph, gather, [flat])
        RemoveUnusedNodesPass()(model)  # what computed with shapes
        result.matched += 1

    def ensures(self, model: ir.Model) -> None:
        """No number of a shape is computed with, or copied to the GPU: shapes are only put together."""
        for node in model.graph:
            if node.op_type == "Shape" and any(
                user.op_type not in ("Concat", "Reshape") for user in node.outputs[0].consumers()
            ):
                raise ExportError(f"{node.name}: a shape is computed with, which would be copied to the GPU")


def _gather_behind(positions: ir.Value) -> ir.Node | None:
    """The first ``Gather`` on the way from the positions, through ops that only they go through."""
    node = next((node for node in positions.consumers() if node.op_type == "Add"), None)
    while node is not None and node.op_type in ("Add", "Reshape"):
        node = only_consumer(node.outputs[0])
    return node if node is not None and node.op_type == "Gather" else None
