"""The ONNX Runtime lowering (CPU): contrib ops where they are right and faster, standard ops where not.

The choices are measured per op: ``benchmarks/results/ort_ops.md``. Linear layers run as ``Q2Linear``, our own
kernel over weights of 16 or 32 bits in place. Mixture-of-experts layers run as their function body (tokens
sorted by expert, one linear layer per expert and matrix) where the experts are float32; of 16 bits they are
converted and written stacked, for ``com.microsoft.MoE``. Quantized weights are multiplied without
dequantizing them, experts by ``com.microsoft.QMoE``.
"""

from __future__ import annotations

from collections.abc import Mapping

from q2export.contracts.quantization import Activations
from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.drop_logits import DropLogits
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.inline_functions import InlineFunctions
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.onnxruntime.fuse_silu import FuseSilu
from q2export.exporter.passes.onnxruntime.fuse_skip_norm import FuseSkipNorm
from q2export.exporter.passes.onnxruntime.lower_attention import LowerAttention
from q2export.exporter.passes.onnxruntime.lower_linear import LowerLinear
from q2export.exporter.passes.onnxruntime.lower_quantized_experts import LowerQuantizedExperts
from q2export.exporter.passes.onnxruntime.lower_quantized_gather import LowerQuantizedGather
from q2export.exporter.passes.onnxruntime.lower_quantized_matmuls import LowerQuantizedMatMuls
from q2export.exporter.passes.onnxruntime.matmul_forms import (
    FLOAT32_ACTIVATIONS,
    INT8_ACTIVATIONS,
    NBitsMatMul,
    RowScaledMatMul,
)
from q2export.exporter.passes.onnxruntime.pack_query_key_value import PackQueryKeyValue
from q2export.exporter.passes.onnxruntime.refuse_moe_traps import RefuseMoeTraps
from q2export.exporter.passes.onnxruntime.stack_experts import StackExperts
from q2export.exporter.passes.order_inputs import OrderInputs
from q2export.exporter.passes.packed_operands import PackedWeights
from q2export.exporter.passes.remove_unused import RemoveUnused

_ACCURACY_LEVELS: dict[Activations, int] = {"float32": FLOAT32_ACTIVATIONS, "int8": INT8_ACTIVATIONS}


def passes(
    max_capacity: int,
    *,
    stack_experts: bool = False,
    packed: PackedWeights | None = None,
    activations: Activations = "float32",
    dtypes: Mapping[str, str] | None = None,
) -> list[Pass]:
    """Return the passes, in order.

    Args:
        max_capacity: tokens a sequence may hold.
        stack_experts: the experts' weights are written anew in any case, so their layout is free.
        packed: the quantized weights, by Hugging Face name.
        activations: the type they have in matmuls with quantized weights.
        dtypes: of the weights on disk that are not quantized, by Hugging Face name: they are read in place.
    """
    weights, level = packed or {}, _ACCURACY_LEVELS[activations]
    matmul = NBitsMatMul(level)
    return [
        FuseRotaryAttention(),
        LowerAttention(max_capacity),
        MergeReshapes(),
        *([OrderInputs(weights), LowerQuantizedExperts(weights, level)] if weights else []),
        *([PackQueryKeyValue(weights, matmul)] if weights else []),
        *([StackExperts(weights)] if stack_experts else []),
        InlineFunctions(),
        FuseSilu(),
        *([LowerQuantizedGather(weights), LowerQuantizedMatMuls(weights, matmul)] if weights else []),
        *([FuseSkipNorm()] if weights else []),
        LowerLinear(dtypes or {}),
        RemoveUnused(),
        RefuseMoeTraps(),
    ]


def prefill_passes(max_capacity: int, packed: PackedWeights) -> list[Pass]:
    """Return the passes, in order, for a graph that fills the cache with many tokens and gives no logits.

    Its matmuls are with int8 copies of the quantized weights.

    Args:
        max_capacity, packed: as in :func:`passes`.
    """
    matmul = RowScaledMatMul()
    return [
        DropLogits(),
        FuseRotaryAttention(),
        LowerAttention(max_capacity),
        MergeReshapes(),
        PackQueryKeyValue(packed, matmul),
        InlineFunctions(),
        FuseSilu(),
        LowerQuantizedGather(packed),
        LowerQuantizedMatMuls(packed, matmul),
        RemoveUnused(),
    ]
