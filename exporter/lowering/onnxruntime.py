"""The ONNX Runtime lowering (CPU): contrib ops where they are right and faster, standard ops where not.

The choices are measured per op: ``benchmarks/results/ort_ops.md``. Mixture-of-experts layers run as their
function body (tokens sorted by expert, one Gemm per expert and matrix) where the experts can be read in
place; where they are converted anyway they are written stacked, for ``com.microsoft.MoE``.
"""

from __future__ import annotations

from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.inline_functions import InlineFunctions
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.ort_attention import LowerAttentionToOnnxRuntime
from q2export.exporter.passes.ort_moe import StackExperts
from q2export.exporter.passes.ort_moe_traps import RefuseMoeTraps
from q2export.exporter.passes.ort_silu import FuseSilu
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(max_positions: int, stack_experts: bool = False) -> list[Pass]:
    """Return the passes, in order.

    Args:
        max_positions: the engine's largest capacity in tokens.
        stack_experts: the experts' weights are written anew in any case, so their layout is free.
    """
    return [
        FuseRotaryAttention(),
        LowerAttentionToOnnxRuntime(max_positions),
        MergeReshapes(),
        *([StackExperts()] if stack_experts else []),
        InlineFunctions(),
        FuseSilu(),
        RemoveUnused(),
        RefuseMoeTraps(),
    ]
