"""``Q2MoE`` -> ``com.microsoft.MoE``, for experts that are converted anyway and so can be written stacked.

The kernel wants all experts in one tensor each, with the rows of gate and up alternating. It decodes faster
than the function body, which has a handful of nodes for every idle expert too
(``benchmarks/results/ort_ops.md``), but from a checkpoint whose experts can be read in place it would need a
copy.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from q2export.contracts import opspec
from q2export.exporter.graph.nodes import constant
from q2export.exporter.passes.base import (
    Inserter,
    PassResult,
    attribute_int,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT, SWIGLU
from q2export.exporter.passes.packed_operands import PackedPass, packed_operand, view
from q2export.exporter.weights.stack import Form

_FIXED_INPUTS = len(opspec.MOE.inputs)
_BEFORE_THE_FIRST = -(2**31)
"""Where a slice with a negative step ends that takes everything."""


class StackExperts(PackedPass):
    """``Q2MoE`` becomes ``MoE`` over two stacked weights; mixtures with quantized experts are left alone."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every mixture of experts; the weights of single experts are no longer read."""
        graph = model.graph
        for node in nodes_of(graph, opspec.MOE.name, opspec.DOMAIN):
            if any(packed_operand(self.packed, node, index) for index in range(len(node.inputs))):
                result.refused.append(f"{node.name}: experts are quantized")
                continue
            self._lower(graph, node)
            result.matched += 1

    def _lower(self, graph: ir.Graph, node: ir.Node) -> None:
        emit = Inserter(graph, node)
        experts = [input_of(node, index) for index in range(_FIXED_INPUTS, len(node.inputs))]
        # Of equal logits the kernel takes the last expert, Q2MoE the first: so they stand in reverse.
        gates, ups, downs = experts[0::3][::-1], experts[1::3][::-1], experts[2::3][::-1]
        pairs = [matrix for pair in zip(gates, ups, strict=True) for matrix in pair]
        hidden, last, first = input_of(node, 0), emit.int64([-1]), emit.int64([_BEFORE_THE_FIRST])
        router_logits = emit.op("Slice", [input_of(node, 1), last, first, last, last], "reversed_logits")
        routed = emit.op(
            "MoE",
            [
                hidden,
                router_logits,
                _stacked(graph, f"{emit.path}.gate_up_proj", pairs, len(gates), interleaved=True),
                None,
                _stacked(graph, f"{emit.path}.down_proj", downs, len(downs), interleaved=False),
            ],
            domain=MICROSOFT,
            attributes={
                "k": attribute_int(node, "top_k"),
                "normalize_routing_weights": attribute_int(node, "norm_topk_prob"),
                **SWIGLU,
            },
            dtype=node.outputs[0].dtype,
            shape=node.outputs[0].shape,
        )
        # The kernel must not find its input's buffer free (refuse_moe_traps.py): this reads the input later.
        never = constant(graph, "const/never", np.array(False))
        replace(graph, node, [emit.op("Where", [never, hidden, routed])])


def _stacked(
    graph: ir.Graph, name: str, matrices: list[ir.Value], experts: int, *, interleaved: bool
) -> ir.Value:
    """An initializer ``[experts, rows, columns]`` to be made of the initializers ``matrices``."""
    first = matrices[0].shape
    rows, columns = (int(size) for size in first.numpy()) if first is not None else (0, 0)
    shape = [experts, rows * (len(matrices) // experts), columns]
    form = Form.ALTERNATING_ROWS if interleaved else Form.VALUES
    dtype = matrices[0].dtype or ir.DataType.FLOAT
    return view(graph, name, dtype, shape, [matrix.name or "" for matrix in matrices], form)
