"""From a checkpoint folder to a lowered graph and the plan of its weights: all that needs no output yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.bind import BindingPlan, plan_binding
from q2export.exporter.checkpoint import Checkpoint, open_checkpoint
from q2export.exporter.config import ModelConfig, load_config
from q2export.exporter.parameters import check_parameters, expected_parameters
from q2export.suggest import nearest

Target = Literal["portable", "onnxruntime", "tensorrt"]

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ONNX_RUNTIME_TYPES = ("float32",)


@dataclass(frozen=True)
class Source:
    """A checkpoint that passed every check that headers allow."""

    folder: Path
    config: ModelConfig
    checkpoint: Checkpoint

    @property
    def dtype(self) -> str:
        """The checkpoint's own type, ``float32``, ``float16`` or ``bfloat16``."""
        return DTYPE_NAMES[self.checkpoint.dtype]


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


def load_source(folder: Path) -> Source:
    """Read and check ``config.json`` and all tensor headers; no weight is read.

    Raises:
        ConfigError, CheckpointError: naming file and field or tensor.
    """
    config = load_config(folder)
    checkpoint = open_checkpoint(folder)
    check_parameters(checkpoint, config)
    return Source(folder, config, checkpoint)


def target_dtype(source: Source, target: Target, dtype: str | None) -> str:
    """Return the type of the graph: what was asked for, or the checkpoint's own where the target takes it.

    Raises:
        ExportError: there is no such target or type, or the target does not run in the type.
    """
    for name, value, valid in (("target", target, get_args(Target)), ("dtype", dtype, DTYPE_NAMES.values())):
        if value is not None and value not in valid:
            raise ExportError(f"{name} {value!r} is not implemented{nearest(value, valid)}")
    if target == "onnxruntime":
        if dtype not in (None, *_ONNX_RUNTIME_TYPES):
            raise ExportError(
                f"target onnxruntime runs in {', '.join(_ONNX_RUNTIME_TYPES)} on the CPU, not in {dtype}"
            )
        return "float32"
    if target == "tensorrt" and dtype is None and source.dtype == "float32":
        return "float16"
    return dtype or source.dtype


def build_graph(source: Source, target: Target, dtype: str, max_positions: int) -> Graph:
    """Trace, emit and lower.

    Args:
        source: the checked checkpoint.
        target: ``portable`` is the canonical graph itself.
        dtype: from :func:`target_dtype`.
        max_positions: largest capacity the engine will be asked for, in tokens.

    Raises:
        ExportError: a part of the model has no translation.
    """
    from q2export.exporter.emit import emit
    from q2export.exporter.lowering import onnxruntime, tensorrt
    from q2export.exporter.passes.base import run_passes

    model = emit(source.config, dtype)
    lowerings = {
        "portable": [],
        "onnxruntime": onnxruntime.passes(max_positions, stack_experts=dtype != source.dtype),
        "tensorrt": tensorrt.passes(),
    }
    results = run_passes(model, lowerings[target])
    plan = plan_binding(model, source.checkpoint, expected_parameters(source.config))
    return Graph(model, plan, tuple((one.name, one.matched, tuple(one.refused)) for one in results))


def planned_bytes(source: Source, dtype: str) -> tuple[int, int]:
    """Return the bytes of weights a graph of ``dtype`` would read in place, and those after conversion."""
    in_place = converted = 0
    itemsize = 4 if dtype == "float32" else 2
    for name in expected_parameters(source.config):  # without the copy of a tied head some checkpoints hold
        ref = source.checkpoint.tensors[name]
        if DTYPE_NAMES[ref.dtype] == dtype:
            in_place += ref.nbytes
        else:
            converted += math.prod(ref.shape) * itemsize
    return in_place, converted
