"""Let TensorRT accumulate float16 matmuls in float32.

In a strongly typed network TensorRT chooses the type in which a float16 matmul is summed up, which may be
float16: too narrow for rows of 18,944 elements. It promises float32 where the matmul is written as
``Cast(Gemm(Cast(x), Cast(W)))``, and fuses the casts into one kernel that reads float16 (TensorRT
documentation, "Strongly Typed Networks", on GEMM accumulation). bfloat16 matmuls are summed in float32 by
the hardware, always, and stay as they are.

The form matters: where the bias is inside the matmul, the matmul stays float32, or two matmuls share the
cast of their input, TensorRT-RTX 1.7 does not fuse and stores the weight in float32 instead. So every matmul
has casts of its own, its bias is added afterwards, and logits are float16 before they become float32.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    attribute_int,
    input_of,
    nodes_of,
    replace,
)

_FLOAT16, _FLOAT32 = ir.DataType.FLOAT16, ir.DataType.FLOAT


class AccumulateInFloat32(Pass):
    """``Gemm(x, W, bias)`` in float16 becomes ``Add(Cast(Gemm(Cast(x), Cast(W))), bias)``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every float16 matmul."""
        for gemm in nodes_of(model.graph, "Gemm"):
            if input_of(gemm, 1).dtype == _FLOAT16:
                self._rewrite(model.graph, gemm)
                result.matched += 1

    def _rewrite(self, graph: ir.Graph, gemm: ir.Node) -> None:
        emit, shape = Inserter(graph, gemm, gemm.name), gemm.outputs[0].shape
        wide = [
            emit.cast(input_of(gemm, index), _FLOAT32, label)
            for index, label in enumerate(("input_float32", "weight_float32"))
        ]
        transposed = {"transB": attribute_int(gemm, "transB")}
        matmul = emit.op("Gemm", wide, "float32", attributes=transposed, dtype=_FLOAT32, shape=shape)
        last = emit.cast(matmul, _FLOAT16)
        if len(gemm.inputs) > 2:
            last = emit.op("Add", [last, input_of(gemm, 2)], "Bias", dtype=_FLOAT16, shape=shape)
        replace(graph, gemm, [last])

    def ensures(self, model: ir.Model) -> None:
        """No matmul reads float16."""
        for node in nodes_of(model.graph, "Gemm") + nodes_of(model.graph, "MatMul"):
            if any(value is not None and value.dtype == _FLOAT16 for value in node.inputs):
                raise ExportError(f"{node.name}: a float16 matmul whose sums TensorRT may keep in float16")
