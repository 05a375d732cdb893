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
from q2export.exporter.passes.packed_operands import PackedWeights, packed_operand
from q2export.exporter.weights.stack import META_KEY, Form, Stack

_FIXED_INPUTS = len(opspec.MOE.inputs)


class StackExperts(Pass):
    """Attributes:
    packed: quantized weights; mixtures with such experts are left alone.
    """

    def __init__(self, packed: PackedWeights | None = None) -> None:
        self.packed = packed or {}

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every mixture of experts; the weights of single experts are no longer read."""
        graph = model.graph
        for node in nodes_of(graph, opspec.MOE.name, opspec.DOMAIN):
            if any(packed_operand(self.packed, node, index) for index in range(len(node.inputs))):
                result.refused.append(f"{node.name}: experts are quantized")
                continue
            self._lower(graph, node)
            result.matched += 1
        if result.matched:
            graph.opset_imports[MICROSOFT] = 1

    def _lower(self, graph: ir.Graph, node: ir.Node) -> None:
        path = (node.name or "").rsplit("/", 1)[0]
        experts = [input_of(node, index) for index in range(_FIXED_INPUTS, len(node.inputs))]
        gates, ups, downs = experts[0::3], experts[1::3], experts[2::3]
        pairs = [matrix for pair in zip(gates, ups, strict=True) for matrix in pair]
        hidden, router_logits = input_of(node, 0), input_of(node, 1)
        routed = insert(
            graph,
            node,
            "MoE",
            [
                hidden,
                router_logits,
                _stacked(graph, f"{path}.gate_up_proj", pairs, len(gates), interleaved=True),
                None,
                _stacked(graph, f"{path}.down_proj", downs, len(downs), interleaved=False),
            ],
            name=f"{path}/MoE",
            domain=MICROSOFT,
            attributes={
                "k": attribute_int(node, "top_k"),
                "normalize_routing_weights": attribute_int(node, "norm_topk_prob"),
                "activation_type": "swiglu",
                "swiglu_fusion": 1,  # gate and up rows alternate
                "activation_alpha": 1.0,
                "activation_beta": 0.0,
            },
        ).outputs[0]
        routed.type, routed.shape = node.outputs[0].type, node.outputs[0].shape
        # The kernel must not find its input's buffer free: see ort_moe_traps. This reads the input after it.
        never = constant(graph, "const/never", ir.tensor(np.array(False)))
        guarded = insert(graph, node, "Where", [never, hidden, routed], name=f"{path}/Where")
        replace(graph, node, guarded.outputs)


def _stacked(
    graph: ir.Graph, name: str, matrices: list[ir.Value], experts: int, *, interleaved: bool
) -> ir.Value:
    """An initializer ``[experts, rows, columns]`` to be made of the initializers ``matrices``."""
    first = matrices[0].shape
    rows, columns = (int(size) for size in first.numpy()) if first is not None else (0, 0)
    shape = ir.Shape([experts, rows * (len(matrices) // experts), columns])
    value = ir.Value(name=name, type=matrices[0].type, shape=shape)
    form = Form.ALTERNATING_ROWS if interleaved else Form.VALUES
    value.meta[META_KEY] = Stack(tuple(matrix.name or "" for matrix in matrices), form)
    graph.initializers.add(value)
    return value
