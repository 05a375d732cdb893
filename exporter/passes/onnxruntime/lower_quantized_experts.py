"""``Q2MoE`` with quantized experts -> ``com.microsoft.QMoE``.

On ONNX Runtime 1.31's CPU the op takes gate and up only with their rows alternating (``swiglu_fusion`` 1), as
they are stored; all experts of a layer are one operand, read in place. It ignores
``normalize_routing_weights`` 0 unless the full softmax is its ``router_weights``
(``exporter/passes/onnxruntime/refuse_moe_traps.py``). 8-bit experts have no kernel for float32 activations.

Of experts with equal router logits it takes the last ones, where ``Q2MoE`` takes the first. A trained router
makes no such ties, and breaking them would cost three more nodes per layer.

Mixtures it does not take run as their function body, one ``MatMulNBits`` per matrix and expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.passes.base import (
    Inserter,
    PassResult,
    attribute_int,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT, SWIGLU
from q2export.exporter.passes.onnxruntime.matmul_forms import INT8_ACTIVATIONS
from q2export.exporter.passes.packed_operands import (
    PackedPass,
    PackedWeights,
    kernel_operands,
    packed_operand,
)

_FIXED_INPUTS = len(opspec.MOE.inputs)


class LowerQuantizedExperts(PackedPass):
    """``Q2MoE`` becomes ``QMoE`` where all its experts are quantized.

    Args:
        packed: the quantized weights.
        accuracy_level: how activations are multiplied, as for ``MatMulNBits``.
    """

    def __init__(self, packed: PackedWeights, accuracy_level: int) -> None:
        super().__init__(packed)
        self.accuracy_level = accuracy_level

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every mixture whose experts are all quantized."""
        graph = model.graph
        for node in nodes_of(graph, opspec.MOE.name, opspec.DOMAIN):
            found = [
                packed_operand(self.packed, node, index) for index in range(_FIXED_INPUTS, len(node.inputs))
            ]
            weights = [weight for weight in found if weight is not None]
            if not weights:
                continue
            if reason := self._refusal(weights, len(found)):
                result.refused.append(f"{node.name}: {reason}")
                continue
            self._lower(graph, node, weights)
            result.matched += 1

    def _refusal(self, weights: Sequence[PackedWeight], expected: int) -> str | None:
        if len(weights) != expected:
            return f"{expected - len(weights)} of its {expected} matrices are not quantized"
        if weights[0].scheme.bits == 8 and self.accuracy_level != INT8_ACTIVATIONS:
            return "the kernel of 8-bit experts rounds activations to int8"
        return None

    def _lower(self, graph: ir.Graph, node: ir.Node, weights: Sequence[PackedWeight]) -> None:
        emit = Inserter(graph, node)
        hidden, router_logits = input_of(node, 0), input_of(node, 1)
        gates, downs = weights[0::3], weights[2::3]  # a gate stands for the pair: up is in the same tensor
        first = kernel_operands(graph, f"{emit.path}.gate_up_proj.weight", gates, experts=len(gates))
        second = kernel_operands(graph, f"{emit.path}.down_proj.weight", downs, experts=len(downs))
        probability = emit.op("Softmax", [router_logits], attributes={"axis": -1})
        routed = emit.op(
            "QMoE",
            [
                *(hidden, router_logits),
                *(first.codes, first.scales, None),
                *(second.codes, second.scales, None),
                *(None, None, None),  # a third matrix, which is fused with the first
                *(first.zero_points, second.zero_points, None),
                probability,
            ],
            domain=MICROSOFT,
            attributes={
                "k": attribute_int(node, "top_k"),
                "normalize_routing_weights": attribute_int(node, "norm_topk_prob"),
                **SWIGLU,
                "expert_weight_bits": weights[0].scheme.bits,
                "block_size": weights[0].scheme.block_size,
                "accuracy_level": self.accuracy_level,
            },
        )
        replace(graph, node, [routed])
