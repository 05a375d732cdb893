"""Refuse mixture-of-experts nodes that ONNX Runtime 1.31 would run to a wrong result without a word.

Two traps of its CPU kernels, pinned by ``tests/exporter/passes/test_moe_traps.py``:

- ``com.microsoft.MoE`` writes its output into its input's buffer when nothing reads the input afterwards,
  and then computes from what it has overwritten: zeros. A reader that waits for the MoE's own output keeps
  the buffer alive.
- ``com.microsoft.QMoE`` ignores ``normalize_routing_weights = 0``; the full softmax has to be passed as its
  ``router_weights``.

``StackExperts`` makes the first op with its guard, ``LowerQuantizedExperts`` the second with its softmax. The
check stands at the end of the lowering, so that no pass can make them unguarded.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.passes.base import Pass, PassResult, input_of, nodes_of
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT

_ROUTER_WEIGHTS = 14
"""Index of QMoE's optional input ``router_weights``."""


class RefuseMoeTraps(Pass):
    """Rewrites nothing; its postcondition is the check."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Count the nodes looked at."""
        result.matched = sum(len(nodes_of(model.graph, op, MICROSOFT)) for op in ("MoE", "QMoE"))

    def ensures(self, model: ir.Model) -> None:
        """Raise ExportError naming the first node that would fall into a trap."""
        for node in nodes_of(model.graph, "MoE", MICROSOFT):
            if not _input_outlives(node):
                raise ExportError(
                    f"{node.name}: com.microsoft.MoE returns zeros when nothing reads its input after it; "
                    "let a node that depends on its output read the input too"
                )
        for node in nodes_of(model.graph, "QMoE", MICROSOFT):
            normalize = node.attributes.get("normalize_routing_weights")
            given = len(node.inputs) > _ROUTER_WEIGHTS and node.inputs[_ROUTER_WEIGHTS] is not None
            if (normalize is None or not normalize.as_int()) and not given:
                raise ExportError(
                    f"{node.name}: com.microsoft.QMoE ignores normalize_routing_weights = 0; "
                    "pass the softmax over all experts as router_weights"
                )


def _input_outlives(moe: ir.Node) -> bool:
    """Whether a node that depends on the MoE's output reads its input, which is then kept until there."""
    readers = set(input_of(moe, 0).consumers()) - {moe}
    pending, seen = list(moe.outputs[0].consumers()), set()
    while pending:
        node = pending.pop()
        if node in readers:
            return True
        if node not in seen:
            seen.add(node)
            pending += [reader for value in node.outputs for reader in value.consumers()]
    return False
