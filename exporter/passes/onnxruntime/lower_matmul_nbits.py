"""``Gemm`` with a quantized weight -> ``com.microsoft.MatMulNBits``, ONNX Runtime's product with codes."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.passes.base import Inserter, input_of
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT
from q2export.exporter.passes.onnxruntime.lower_quantized_linear import LowerQuantizedGemm
from q2export.exporter.passes.packed_operands import view
from q2export.exporter.weights.stack import Form


class LowerMatMulNBits(LowerQuantizedGemm):
    """``Gemm`` with a quantized weight becomes ``MatMulNBits``, and ``Add`` of its bias.

    Codes are those on disk, seen as ``[out, blocks, bytes of a block]``; scales are of the type of the graph.
    Without zero points the op takes them to be in the middle, 8 or 128.
    """

    def _linear(self, emit: Inserter, gemm: ir.Node, weight: PackedWeight) -> ir.Value:
        graph, x, scheme = emit.graph, input_of(gemm, 0), weight.scheme
        dtype = x.dtype or ir.DataType.FLOAT
        name, blob = weight.tensor, scheme.block_size * scheme.bits // 8
        shape = [weight.rows, weight.blocks, blob]
        codes = view(graph, f"{name}/blocks", ir.DataType.UINT8, shape, [name])
        scales = view(
            graph, f"{name}/scale", dtype, [weight.rows, weight.blocks], [weight.scale_name], Form.VALUES
        )
        attributes = {
            "K": weight.shape[1],
            "N": weight.rows,
            "bits": scheme.bits,
            "block_size": scheme.block_size,
        }
        product = emit.op(
            "MatMulNBits", [x, codes, scales], domain=MICROSOFT, attributes=attributes, dtype=dtype
        )
        if len(gemm.inputs) < 3:
            return product
        return emit.op("Add", [product, input_of(gemm, 2)], "Bias", dtype=dtype)
