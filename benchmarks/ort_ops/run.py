"""Measures every op case of a case file: correctness first, then interleaved timing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.measure import interleave, paired_speedup, summarize
from benchmarks.ort_ops.attention import AttentionShape, attention_case
from benchmarks.ort_ops.case import LoadedVariant, OpCase, Point
from benchmarks.ort_ops.elementwise import NormShape, SwigluShape, norm_case, swiglu_case
from benchmarks.ort_ops.linear import HeadShape, LinearShape, head_case, linear_case
from benchmarks.ort_ops.moe import MoeShape, moe_case
from benchmarks.ort_ops.quantized_embedding import EmbeddingShape, embedding_case
from benchmarks.ort_ops.quantized_linear import (
    MatMulsShape,
    QuantizedHeadShape,
    matmuls_case,
    quantized_head_case,
)
from benchmarks.ort_ops.quantized_moe import quantized_moe_case
from q2export.errors import Q2ExportError
from q2export.strict.codec import Source, from_plain

Record = dict[str, Any]

_OPS: Mapping[str, tuple[type[Any], Callable[[str, Any, Path], OpCase]]] = {
    "attention": (AttentionShape, attention_case),
    "norm": (NormShape, norm_case),
    "linear": (LinearShape, linear_case),
    "moe": (MoeShape, moe_case),
    "swiglu": (SwigluShape, swiglu_case),
    "head": (HeadShape, head_case),
    "quantized-products": (MatMulsShape, matmuls_case),
    "quantized-head": (QuantizedHeadShape, quantized_head_case),
    "quantized-embedding": (EmbeddingShape, embedding_case),
    "quantized-moe": (MoeShape, quantized_moe_case),
}


@dataclass(frozen=True)
class OpSpec:
    """One line of the case file: an op, what to call its size, the named list of points, and its sizes."""

    op: str
    size: str
    points: str
    shape: Mapping[str, int]


@dataclass(frozen=True)
class OrtOpsSpec:
    """The case file.

    Attributes:
        threads: threads of ONNX Runtime's pool.
        rounds: turns of every variant per point.
        turn_seconds: a variant runs at least this long in its turn.
        tolerance: largest accepted error, relative to the largest absolute value of the reference.
        decisions: what follows from the results, one sentence each; they head the page.
    """

    kind: str
    threads: int
    rounds: int
    turn_seconds: float
    tolerance: float
    points: Mapping[str, tuple[Point, ...]]
    ops: tuple[OpSpec, ...]
    decisions: tuple[str, ...]


class WrongResultError(Q2ExportError):
    """A variant does not compute what the numpy reference computes; its time would mean nothing."""


def measure_ort_ops(spec: OrtOpsSpec, source: Source, work_dir: Path) -> list[Record]:
    """Run all ops of the case file; one record per op, size, point and variant."""
    ort.set_global_thread_pool_sizes(spec.threads, 1)
    records: list[Record] = []
    for line in spec.ops:
        if line.op not in _OPS or line.points not in spec.points:
            raise source.error(
                f"{source.label}: op {line.op!r} at points {line.points!r}; ops are {', '.join(_OPS)}, "
                f"points are {', '.join(spec.points)}"
            )
        shape_type, build = _OPS[line.op]
        folder = work_dir / f"{line.op}-{line.size.replace(' ', '-')}"
        try:
            case = build(line.size, from_plain(shape_type, line.shape, source, "shape"), folder)
            records += _measure(case, spec.points[line.points], spec)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return records


def _measure(case: OpCase, points: Sequence[Point], spec: OrtOpsSpec) -> list[Record]:
    loaded = [LoadedVariant(variant) for variant in case.variants]
    records: list[Record] = []
    for point in points:
        feeds = case.feeds(point)
        expected = case.reference(feeds)
        running = [variant for variant in loaded if variant.variant.supports(point)]
        errors = {}
        for variant in running:
            variant.bind(feeds)
            variant.run()
            errors[variant.variant.name] = float(np.abs(variant.output() - expected).max())
        scale = float(np.abs(expected).max())
        for variant in running:
            own = variant.variant
            tolerance = spec.tolerance if own.tolerance is None else own.tolerance
            if not errors[own.name] <= tolerance * scale:
                raise WrongResultError(
                    f"{case.op} {case.size} {point.label}: {own.name} is off by {errors[own.name]:.3g}, "
                    f"accepted are {tolerance:g} of values up to {scale:.3g}"
                )
        records += _time(case, point, running, spec, errors)
    return records


def _time(
    case: OpCase,
    point: Point,
    running: Sequence[LoadedVariant],
    spec: OrtOpsSpec,
    errors: Mapping[str, float],
) -> list[Record]:
    turns = {
        variant.variant.name: partial(_turn, variant, max(1, int(spec.turn_seconds / variant.run())))
        for variant in running
    }
    samples = interleave(turns, spec.rounds)
    baseline = samples.get(case.variants[0].name)
    records = []
    for variant in running:
        name = variant.variant.name
        record: Record = {
            "op": case.op,
            "size": case.size,
            "point": point.label,
            "variant": name,
            **summarize(samples[name]).as_dict(),
            "speedup_over_first": paired_speedup(samples[name], baseline) if baseline else None,
            "max_abs_error": errors[name],
            "load_seconds": variant.load_seconds,
        }
        records.append(record)
        print(
            f"{case.op:19} {case.size:12} {point.label:15} {name:28} {record['median'] * 1e3:9.3f} ms",
            file=sys.stderr,
        )
    return records


def _turn(variant: LoadedVariant, runs: int) -> list[float]:
    return [variant.run() for _ in range(runs)]
