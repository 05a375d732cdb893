"""Fuse the two rotations and the attention that reads them into one ``Q2RotaryAttention``."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    attribute_float,
    attribute_int,
    define,
    input_of,
    nodes_of,
    only_consumer,
    replace,
)

_COPIED_INTS = ("num_heads", "num_kv_heads", "sliding_window")


class FuseRotaryAttention(Pass):
    """``Q2GroupQueryAttention`` of two ``Q2RotaryEmbedding`` and a value becomes ``Q2RotaryAttention``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Fuse every attention whose rotations it alone reads."""
        for attention in nodes_of(model.graph, opspec.ATTENTION.name, opspec.DOMAIN):
            rotations = [input_of(attention, index).producer() for index in (0, 1)]
            reason = _refusal(rotations, attention)
            if reason:
                result.refused.append(f"{attention.name}: {reason}")
                continue
            self._fuse(model.graph, attention, [node for node in rotations if node is not None])
            result.matched += 1
        if result.matched:
            define(model, function_for(opspec.ROTARY_ATTENTION))

    def _fuse(self, graph: ir.Graph, attention: ir.Node, rotations: list[ir.Node]) -> None:
        inputs = [input_of(rotations[0], 0), input_of(rotations[1], 0), *attention.inputs[2:]]
        fused = Inserter(graph, attention).node(
            opspec.ROTARY_ATTENTION.name,
            [*inputs, input_of(rotations[0], 2)],
            [ir.Value() for _ in attention.outputs],
            domain=opspec.DOMAIN,
            attributes={
                **{name: attribute_int(attention, name) for name in _COPIED_INTS},
                "scale": attribute_float(attention, "scale"),
                "attention_factor": attribute_float(rotations[0], "attention_factor"),
                "plugin_version": opspec.PLUGIN_VERSION,
                "plugin_namespace": opspec.PLUGIN_NAMESPACE,
            },
        )
        replace(graph, attention, fused.outputs)
        graph.remove(rotations, safe=True)

    def ensures(self, model: ir.Model) -> None:
        """No rotation is left over: what it meant would have to be translated apart from its attention."""
        left = nodes_of(model.graph, opspec.ROTARY.name, opspec.DOMAIN)
        if left:
            raise ExportError(
                f"{left[0].name}: a rotation whose attention could not be found; it cannot be lowered"
            )


def _refusal(rotations: list[ir.Node | None], attention: ir.Node) -> str | None:
    for side, node in zip(("query", "key"), rotations, strict=True):
        if node is None or node.op_type != opspec.ROTARY.name:
            return f"its {side} is not rotated"
        if only_consumer(node.outputs[0]) is not attention:
            return f"the rotated {side} is also read elsewhere"
    query, key = rotations
    if query is None or key is None:
        return "a rotation is missing"
    if input_of(query, 1) is not input_of(key, 1) or input_of(query, 2) is not input_of(key, 2):
        return "query and key are rotated by different positions or frequencies"
    if attribute_float(query, "attention_factor") != attribute_float(key, "attention_factor"):
        return "query and key are rotated with different attention factors"
    return None
