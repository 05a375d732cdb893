"""The ONNX Runtime lowering (CPU): contrib ops where they are right and faster, standard ops where not.

The choices are measured per op: ``benchmarks/results/ort_ops.md``. Mixture-of-experts layers run as their
function body (tokens sorted by expert, one Gemm per expert and matrix): ``com.microsoft.MoE`` would need
every expert stacked and interleaved, a copy, and returns zeros where its input buffer is reused
(``passes/ort_moe_traps.py``).
"""

from __future__ import annotations

from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.inline_functions import InlineFunctions
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.ort_attention import LowerAttentionToOnnxRuntime
from q2export.exporter.passes.ort_moe_traps import RefuseMoeTraps
from q2export.exporter.passes.ort_silu import FuseSilu
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(max_positions: int) -> list[Pass]:
    """Return the passes, in order; ``max_positions`` is the engine's largest capacity in tokens."""
    return [
        FuseRotaryAttention(),
        LowerAttentionToOnnxRuntime(max_positions),
        MergeReshapes(),
        InlineFunctions(),
        FuseSilu(),
        RemoveUnused(),
        RefuseMoeTraps(),
    ]
