"""``Q2MoE`` with quantized experts -> ``Q2QuantizedMoE``.

All experts of a layer are one operand, read in place: in the packed form they follow each other, gate and up
with their rows alternating. On the CPU a mixture only some of whose matrices are quantized runs as its
function body, one linear layer per matrix and expert; for TensorRT, where it would have no plugin,
``lowering/limits.py`` refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from q2export.contracts import opspec
from q2export.contracts.quantization import Activations
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
    PackedWeights,
    kernel_operands,
    packed_operand,
)

_FIXED_INPUTS = len(opspec.MOE.inputs)


class LowerQuantizedExperts(PackedOpPass):
    """``Q2MoE`` becomes ``Q2QuantizedMoE`` where all its experts are quantized.

    Args:
        packed, activations: see :class:`~q2export.exporter.passes.packed_operands.PackedOpPass`.
        words: see codes as int32 words: TensorRT would widen bytes.
    """

    def __init__(self, packed: PackedWeights, activations: Activations, *, words: bool = False) -> None:
        super().__init__(packed, activations)
        self.words = words

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every mixture whose experts are all quantized."""
        graph = model.graph
        for node in nodes_of(graph, opspec.MOE.name, opspec.DOMAIN):
            found = [
                packed_operand(self.packed, node, index) for index in range(_FIXED_INPUTS, len(node.inputs))
            ]
            weights = [weight for weight in found if weight is not None]
            if len(weights) == len(found):
                self._lower(graph, node, weights)
                result.matched += 1
            elif weights:
                missing = len(found) - len(weights)
                result.refused.append(
                    f"{node.name}: {missing} of its {len(found)} matrices are not quantized"
                )
        if result.matched:
            define(model, function_for(opspec.QUANTIZED_MOE, scheme=self.scheme, words=self.words))
            if not self.words:
                define(model, function_for(opspec.QUANTIZED_LINEAR, scheme=self.scheme))
        if result.refused:
            InlinePass(lambda function: function.name == opspec.MOE.name)(model)

    def _lower(self, graph: ir.Graph, node: ir.Node, weights: Sequence[PackedWeight]) -> None:
        emit = Inserter(graph, node)
        gates, downs = weights[0::3], weights[2::3]  # a gate stands for the pair: up is in the same tensor
        first, second = (
            kernel_operands(graph, f"{emit.path}.{name}.weight", rows, experts=len(rows), words=self.words)
            for name, rows in (("gate_up_proj", gates), ("down_proj", downs))
        )
        zero_points = [point for point in (first.zero_points, second.zero_points) if point is not None]
        attributes = self.attributes
        if self.words:
            own = opspec.QUANTIZED_MOE.attribute_names()
            attributes = {name: value for name, value in attributes.items() if name in own}
            attributes |= {
                "plugin_version": opspec.PLUGIN_VERSION,
                "plugin_namespace": opspec.PLUGIN_NAMESPACE,
            }
        routed = emit.op(
            opspec.QUANTIZED_MOE.name,
            [
                *(input_of(node, 0), input_of(node, 1)),
                *(first.codes, first.scales, second.codes, second.scales),
                *zero_points,
            ],
            domain=opspec.DOMAIN,
            attributes={
                **{name: attribute_int(node, name) for name in opspec.MOE.attribute_names()},
                **attributes,
            },
        )
        replace(graph, node, [routed])
