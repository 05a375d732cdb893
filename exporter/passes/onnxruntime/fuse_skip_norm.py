"""``Add`` and the ``RMSNormalization`` of its sum -> ``com.microsoft.SkipSimplifiedLayerNormalization``.

At one token per step the two ops cost more to start than to compute: fused, a decoding step of a 0.5B model
with int4 weights becomes 5 % shorter. With many tokens the fused kernel is the slower one, for it sums on
one thread (``benchmarks/results/ort_ops.md``); so it is for graphs whose decoding matters most.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Inserter, Pass, PassResult, attribute_float, input_of, nodes_of
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT

_SUM_OUTPUT = 3


class FuseSkipNorm(Pass):
    """The sum stays available under its name, as the last output of the op."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Fuse every normalization of the last axis with the sum it reads."""
        graph = model.graph
        for norm in nodes_of(graph, "RMSNormalization"):
            total = input_of(norm, 0).producer()
            if total is None or total.op_type != "Add":
                continue
            if reason := _refusal(norm, total):
                result.refused.append(f"{norm.name}: {reason}")
                continue
            self._fuse(graph, norm, total)
            result.matched += 1

    def _fuse(self, graph: ir.Graph, norm: ir.Node, total: ir.Node) -> None:
        normalized, summed = norm.outputs[0], total.outputs[0]
        names = normalized.name, summed.name
        fused = Inserter(graph, total, names[0]).node(
            "SkipSimplifiedLayerNormalization",
            [input_of(total, 0), input_of(total, 1), input_of(norm, 1)],
            [ir.Value() for _ in range(_SUM_OUTPUT + 1)],
            domain=MICROSOFT,
            attributes={"epsilon": attribute_float(norm, "epsilon")},
        )
        for old, new, name in zip(
            (normalized, summed), (fused.outputs[0], fused.outputs[-1]), names, strict=True
        ):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            old.name, new.name = None, name
        for unused in fused.outputs[1:-1]:
            unused.name = ""
        graph.remove([norm, total], safe=True)


def _refusal(norm: ir.Node, total: ir.Node) -> str | None:
    """Why the two cannot be one; None if they can."""
    axis = norm.attributes.get("axis")
    if axis is not None and axis.as_int() != -1:
        return "it normalizes more than the last axis"
    shapes = [value.shape if value is not None else None for value in total.inputs]
    if None in shapes or shapes[0] != shapes[1]:
        return "the shapes of the two terms are not known to be the same"
    return None
