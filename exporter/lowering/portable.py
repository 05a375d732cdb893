"""The portable graph: the canonical one, with quantized weights dequantized by standard ops."""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.dequantize_weights import DequantizeWeights, Operands
from q2export.exporter.passes.gather_codes import GatherCodes
from q2export.exporter.passes.order_inputs import OrderInputs
from q2export.exporter.passes.packed_operands import PackedWeights
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(packed: PackedWeights, dtype: ir.DataType) -> list[Pass]:
    """Return the passes, in order.

    Args:
        packed: the quantized weights, by Hugging Face name.
        dtype: of weights and activations; what is dequantized is float32 at first, in every case.
    """
    if not packed:
        return []
    return [
        OrderInputs(packed),
        GatherCodes(packed),
        DequantizeWeights(packed, Operands(signed=False, dtype=dtype, scale_dtype=ir.DataType.FLOAT)),
        RemoveUnused(),
    ]
