"""From a checkpoint folder to a lowered graph and the plan of its weights: all that needs no output yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from q2export.contracts.dtypes import BY_NAME, FLOAT_NAMES
from q2export.contracts.quantization import Activations
from q2export.errors import ExportError
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.source import Source, load_source
from q2export.exporter.passes.base import Pass
from q2export.exporter.weights.bind import BindingPlan, plan_binding
from q2export.strict.suggest import nearest

__all__ = ["Graph", "Source", "Target", "build_graph", "load_source", "target_dtype"]

Target = Literal["portable", "onnxruntime", "onnxruntime-cuda", "tensorrt"]

_ONNX_RUNTIME_TYPES = ("float32",)


@dataclass(frozen=True)
class Graph:
    """A lowered graph whose weights are planned but not yet attached.

    Attributes:
        model: the graph.
        plan: where its weights come from.
        passes: what each pass did, in order: (name, places rewritten, reasons for places left alone).
    """

    model: ir.Model
    plan: BindingPlan
    passes: tuple[tuple[str, int, tuple[str, ...]], ...]


def target_dtype(own: str, target: Target, dtype: str | None) -> str:
    """Return the type of the graph: what was asked for, or the checkpoint's own where the target takes it.

    A portable graph is in float32 where the checkpoint is in bfloat16: it is there to run anywhere, and ONNX
    Runtime has no bfloat16 matmul on the CPU. (For float16 it inserts casts.)

    Args:
        own: the checkpoint's own type.
        target: what the graph is for.
        dtype: what was asked for; None for the checkpoint's own.

    Raises:
        ExportError: there is no such target or type, or the target does not run in the type.
    """
    for name, value, valid in (("target", target, get_args(Target)), ("dtype", dtype, FLOAT_NAMES)):
        if value is not None and value not in valid:
            raise ExportError(f"{name} {value!r} is not implemented{nearest(value, valid)}")
    if target == "onnxruntime":
        if dtype not in (None, *_ONNX_RUNTIME_TYPES):
            raise ExportError(
                f"target onnxruntime runs in {', '.join(_ONNX_RUNTIME_TYPES)} on the CPU, not in {dtype}"
            )
        return "float32"
    if target == "onnxruntime-cuda" and dtype == "float32":
        raise ExportError("target onnxruntime-cuda runs in float16 and bfloat16, not in float32")
    defaults = {
        ("tensorrt", "float32"): "float16",
        ("onnxruntime-cuda", "float32"): "float16",
        ("portable", "bfloat16"): "float32",
    }
    return dtype or defaults.get((target, own), own)


def canonical_graph(config: ModelConfig, dtype: str) -> ir.Model:
    """Trace and emit a model: the graph every target starts from; see ``graph/emit.py``."""
    from q2export.exporter.graph.emit import emit
    from q2export.exporter.passes.clean import clean

    return clean(emit(config, dtype))


def build_graph(
    source: Source,
    target: Target,
    dtype: str,
    *,
    kv_dtype: str | None = None,
    activations: Activations = "float32",
) -> Graph:
    """Trace, emit and lower.

    Args:
        source: the checked checkpoint.
        target: ``portable`` is the canonical graph itself.
        dtype: from :func:`target_dtype`.
        kv_dtype: of the KV cache; None is ``dtype``. Another one is for ``onnxruntime`` alone.
        activations: see :class:`q2export.contracts.quantization.Quantization`.

    Raises:
        ExportError: a part of the model has no translation.
    """
    from q2export.exporter.passes.base import run_passes

    model = canonical_graph(source.config, dtype)
    passes = _lowering(source, target, dtype, kv_dtype or dtype, activations)
    results = run_passes(model, passes)
    plan = plan_binding(model, source.checkpoint, source.tensor_names)
    return Graph(model, plan, tuple((one.name, one.matched, tuple(one.refused)) for one in results))


def _lowering(
    source: Source, target: Target, dtype: str, kv_dtype: str, activations: Activations
) -> list[Pass]:
    from q2export.exporter.lowering import onnxruntime, onnxruntime_cuda, portable, tensorrt

    graph_type = ir.DataType[BY_NAME[dtype].onnx]
    if target == "portable":
        return portable.passes(source.packed, graph_type)
    if target == "tensorrt":
        return tensorrt.passes(source.packed, graph_type)
    if target == "onnxruntime-cuda":
        return onnxruntime_cuda.passes(source.packed, graph_type)
    return onnxruntime.passes(
        source.packed,
        dtypes=source.float_dtypes,
        activations=activations,
        kv_dtype=ir.DataType[BY_NAME[kv_dtype].onnx],
    )
