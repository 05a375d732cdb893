"""Let TensorRT accumulate float16 matrix products in float32.

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
from q2export.exporter.passes.base import Pass, PassResult, attribute_int, input_of, insert, nodes_of, replace

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
        name, shape = gemm.name or "Gemm", gemm.outputs[0].shape
        wide = [
            _cast(graph, gemm, input_of(gemm, index), f"{name}/{label}", _FLOAT32)
            for index, label in enumerate(("input_float32", "weight_float32"))
        ]
        transposed = {"transB": attribute_int(gemm, "transB")}
        matmul = insert(graph, gemm, "Gemm", wide, name=f"{name}/float32", attributes=transposed).outputs[0]
        matmul.shape, matmul.type = shape, ir.TensorType(_FLOAT32)
        last = _cast(graph, gemm, matmul, f"{name}/Cast", _FLOAT16)
        if len(gemm.inputs) > 2:
            last = insert(graph, gemm, "Add", [last, input_of(gemm, 2)], name=f"{name}/Bias").outputs[0]
            last.shape, last.type = shape, ir.TensorType(_FLOAT16)
        replace(graph, gemm, [last])

    def ensures(self, model: ir.Model) -> None:
        """No matmul reads float16."""
        for node in nodes_of(model.graph, "Gemm") + nodes_of(model.graph, "MatMul"):
            if any(value is not None and value.dtype == _FLOAT16 for value in node.inputs):
                raise ExportError(f"{node.name}: a float16 matmul whose sums TensorRT may keep in float16")


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, name: str, to: ir.DataType) -> ir.Value:
    result = insert(graph, before, "Cast", [value], name=name, attributes={"to": int(to)}).outputs[0]
    result.shape, result.type = value.shape, ir.TensorType(to)
    return result
