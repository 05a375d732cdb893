"""The ONNX Runtime lowering (CPU): the ops of the TensorRT target, over weights as they lie on disk.

``Q2RotaryAttention``, ``Q2MoE`` and ``Q2QuantizedMoE``, for linear layers ``Q2Linear`` and
``Q2QuantizedLinear``, for a quantized embedding ``Q2QuantizedGather``, and ``Q2SwiGLU`` are run by
``libq2export_onnxruntime.so`` (``plugins/csrc/onnxruntime``), and by their function bodies where that is
absent. No weight of a matmul is converted, repacked or copied.

For one small thing ONNX Runtime's contrib op is faster than standard ones
(``benchmarks/results/ort_ops.md``): where decoding is short, sum and norm in one.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from q2export.contracts.quantization import Activations
from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.lower_quantized_experts import LowerQuantizedExperts
from q2export.exporter.passes.narrow_cache import NarrowCache
from q2export.exporter.passes.onnxruntime.fuse_skip_norm import FuseSkipNorm
from q2export.exporter.passes.onnxruntime.fuse_swiglu import FuseSwiGLU
from q2export.exporter.passes.onnxruntime.lower_linear import LowerLinear
from q2export.exporter.passes.onnxruntime.lower_quantized_gather import LowerQuantizedGather
from q2export.exporter.passes.onnxruntime.lower_quantized_linear import LowerQuantizedLinear
from q2export.exporter.passes.order_inputs import OrderInputs
from q2export.exporter.passes.packed_operands import PackedWeights
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(
    packed: PackedWeights,
    *,
    dtypes: Mapping[str, str],
    activations: Activations = "float32",
    kv_dtype: ir.DataType = ir.DataType.FLOAT,
) -> list[Pass]:
    """Return the passes, in order.

    Args:
        packed: the quantized weights, by Hugging Face name.
        dtypes: of the weights on disk that are not quantized, by Hugging Face name: they are read in place.
        activations: the type they have in matmuls.
        kv_dtype: of the KV cache.
    """
    quantized: list[Pass] = [
        OrderInputs(packed),
        LowerQuantizedExperts(packed, activations),
        LowerQuantizedGather(packed),
        LowerQuantizedLinear(packed, activations),
    ]
    return [
        FuseRotaryAttention(),
        NarrowCache(kv_dtype),
        *(quantized if packed else []),
        FuseSwiGLU(),
        *([FuseSkipNorm()] if packed else []),
        LowerLinear(dtypes, bfloat16_activations=activations == "bfloat16"),
        RemoveUnused(),
    ]
