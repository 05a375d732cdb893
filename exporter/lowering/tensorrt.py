"""The TensorRT lowering: rotation and attention become one plugin node; every node keeps its function body.

TensorRT takes ``Q2*`` nodes to plugins of the namespace in their ``plugin_namespace`` attribute; any other
runtime runs the same file through the functions. The network is strongly typed, so the graph says where
float32 is needed. What needs no pass, because TensorRT-RTX 1.7 already does it:

- ``RMSNormalization`` with ``stash_type`` 1 is imported as float32 arithmetic between two casts;
- ``Gemm`` with ``transB`` reads Hugging Face's [out, in] weights where they are, without a copy;
- the router's softmax is inside ``Q2MoE``, whose definition makes it float32;
- logits are cast to float32 by the model itself, and the head shares a tied embedding's only copy.

Quantized weights are dequantized by block, ``DequantizeLinear`` of signed codes, which TensorRT keeps as they
are in the engine and fuses with the matmul that reads them. A quantized embedding is in the engine as int32
words, too: it gathers no other form (``exporter/passes/gather_codes.py``). Quantized experts are a plugin of
their own, ``Q2QuantizedMoE``, over the bytes on disk: codes as int32 words, scales in float16 whatever the
graph's type. What TensorRT does not take of quantized weights is in ``exporter/lowering/limits.py``.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.accumulate_in_float32 import AccumulateInFloat32
from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.dequantize_weights import DequantizeWeights, Operands
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.gather_codes import GatherCodes
from q2export.exporter.passes.lower_quantized_experts import LowerQuantizedExperts
from q2export.exporter.passes.order_inputs import OrderInputs
from q2export.exporter.passes.packed_operands import PackedWeights
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(packed: PackedWeights, dtype: ir.DataType) -> list[Pass]:
    """Return the passes, in order.

    Args:
        packed: the quantized weights, by Hugging Face name.
        dtype: of weights, activations and scales.
    """
    quantized: list[Pass] = [
        OrderInputs(packed),
        GatherCodes(packed),
        LowerQuantizedExperts(packed, "float32", words=True),
        DequantizeWeights(packed, Operands(signed=True, dtype=dtype, scale_dtype=dtype)),
    ]
    return [
        FuseRotaryAttention(),
        *(quantized if packed else []),
        AccumulateInFloat32(),
        RemoveUnused(),
    ]
