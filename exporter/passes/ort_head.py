"""The vocabulary projection with its operands swapped: ``Gemm(rows, W, transB)`` -> ``Gemm(W, rows^T)^T``.

ONNX Runtime multiplies few rows by an unpacked ``[vocab, hidden]`` matrix faster when the matrix is the left
operand: it is then read once, in order, and only the small operand is packed (numbers in
benchmarks/results/ort_ops.md).
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass, PassResult, input_of, insert, nodes_of, replace

HEAD = "lm_head/Gemm"


class FlipHead(Pass):
    """Rewrite the one Gemm of the head."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite it if it is there."""
        graph = model.graph
        for gemm in nodes_of(graph, "Gemm"):
            if gemm.name != HEAD:
                continue
            rows, weight = input_of(gemm, 0), input_of(gemm, 1)
            swap = {"perm": [1, 0]}
            columns = insert(graph, gemm, "Transpose", [rows], name="lm_head/rows", attributes=swap).outputs[
                0
            ]
            product = insert(graph, gemm, "Gemm", [weight, columns], name="lm_head/flipped").outputs[0]
            logits = insert(graph, gemm, "Transpose", [product], name="lm_head/Transpose", attributes=swap)
            replace(graph, gemm, logits.outputs)
            result.matched += 1
