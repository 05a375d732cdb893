"""From a failed comparison to the layer and the tensor where it began."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from q2export.compare.verify.bisect import (
    NoiseModel,
    first_divergence,
    is_stage,
    layer_errors,
    stage_errors,
)
from q2export.compare.verify.contracts import (
    HEAD_POINT,
    EngineProbe,
    PointInfo,
    Reference,
    ReferenceRun,
)
from q2export.compare.verify.judge import Verdict
from q2export.compare.verify.results import Curve, Divergence, PointError, SequenceResult
from q2export.errors import ParityError
from q2export.runtime.backends.base import Float32Array

MIN_CURVE_TOKENS = 16


@dataclass(frozen=True)
class Findings:
    """What looking at intermediate tensors gave."""

    curve: Curve | None
    divergence: Divergence | None
    warnings: tuple[str, ...]


def capture_names(probe: EngineProbe) -> list[str]:
    """Points the reference must capture for the error curve; the head's are its logits."""
    return [point.name for point in _stages(probe) if point.name != HEAD_POINT]


def localise(
    reference: Reference,
    probe: EngineProbe,
    run: ReferenceRun,
    sequences: Sequence[SequenceResult],
    tokens: Sequence[Sequence[int]],
    verdict: Verdict,
    noise: NoiseModel,
) -> Findings:
    """Compute the error curve and, if the verdict is failure, look for its origin.

    The curve is taken on the sequence with the largest logit error, up to and including that position, so
    that a fault which only shows at late positions is on it.

    Args:
        reference: asked again, for one sequence, only if the origin is inside a layer.
        probe: the engine.
        run: the reference's pass over ``tokens``, with :func:`capture_names` captured.
        sequences: results of the comparison, parallel to ``tokens``.
        tokens: the compared sequences.
        verdict: of the comparison.
        noise: what rounding explains.
    """
    stages = _stages(probe)
    if not stages:
        return Findings(None, None, ("the engine exposes no intermediate tensors: no error curve",))
    focus = max(range(len(tokens)), key=lambda index: _severity(sequences[index]))
    prefix = tokens[focus][: _prefix_length(sequences[focus])]
    errors = _stage_errors(probe, stages, run, focus, prefix, noise)
    reproduced = _reproduces(errors, sequences[focus])
    diverges = any(stage.diverges for stage in errors)
    divergence = None
    if verdict.failures and (diverges or (verdict.logits_failed and reproduced)):
        divergence = _find_origin(reference, probe, errors, prefix, noise)
    warnings = tuple(_warnings(errors, verdict, reproduced))
    return Findings(Curve(sequences[focus].name, len(prefix), errors), divergence, warnings)


def _stages(probe: EngineProbe) -> list[PointInfo]:
    return [point for point in probe.points() if is_stage(point)]


def _severity(sequence: SequenceResult) -> float:
    return float("inf") if sequence.metrics is None else sequence.metrics.max_abs_error


def _prefix_length(sequence: SequenceResult) -> int:
    worst = sequence.metrics.worst.token if sequence.metrics else 0
    worst = sequence.non_finite.token if sequence.non_finite else worst
    return max(worst + 1, min(MIN_CURVE_TOKENS, sequence.tokens))


def _stage_errors(
    probe: EngineProbe,
    stages: Sequence[PointInfo],
    run: ReferenceRun,
    focus: int,
    prefix: Sequence[int],
    noise: NoiseModel,
) -> tuple[PointError, ...]:
    names = [stage.name for stage in stages]
    rows = {**run.captures, HEAD_POINT: run.logits}
    _require_points(rows, names, "reference")
    # Attention is causal: the first rows of a longer sequence are those of its prefix.
    expected = {name: rows[name][focus][: len(prefix)] for name in names}
    return stage_errors(stages, expected, _capture(probe, prefix, names), noise)


def _reproduces(errors: Sequence[PointError], sequence: SequenceResult) -> bool:
    """Whether the logit error is still there when intermediate tensors are exposed."""
    if any(stage.diverges for stage in errors):
        return True
    if sequence.metrics is None:
        return False
    head = errors[-1]
    return head.name != HEAD_POINT or (head.max_abs or 0.0) >= 0.5 * sequence.metrics.max_abs_error


def _warnings(errors: Sequence[PointError], verdict: Verdict, reproduced: bool) -> Iterator[str]:
    if verdict.logits_failed and not reproduced:
        yield (
            "the error vanishes when intermediate tensors are exposed, which keeps the backend from fusing "
            "across them: suspect its graph optimisations, or the chunked prefill of long sequences"
        )
    stage = first_divergence(errors)
    if stage.diverges and not verdict.failures:
        yield (
            f"{stage.name} differs by more than rounding explains (relative error {stage.max_error:.1e}, "
            f"tolerance {stage.tolerance:.1e}), although the logits are within their limits"
        )


def _find_origin(
    reference: Reference,
    probe: EngineProbe,
    errors: Sequence[PointError],
    prefix: Sequence[int],
    noise: NoiseModel,
) -> Divergence:
    stage = first_divergence(errors)
    inner = [
        point
        for point in probe.points()
        if stage.layer is not None and point.layer == stage.layer and not is_stage(point)
    ]
    origin = stage
    if inner:
        names = [point.name for point in inner]
        run = reference.run([prefix], names)
        _require_points(run.captures, names, "reference")
        expected = {name: run.captures[name][0] for name in names}
        engine = _capture(probe, prefix, names)
        origin = first_divergence(layer_errors(inner, expected, engine, stage, noise))
    return Divergence(stage.layer, origin, gradual=not origin.diverges)


def _capture(probe: EngineProbe, tokens: Sequence[int], names: Sequence[str]) -> Mapping[str, Float32Array]:
    captured = probe.capture(tokens, names)
    _require_points(captured, names, "engine")
    return captured


def _require_points(found: Collection[str], names: Sequence[str], side: str) -> None:
    for name in names:
        if name not in found:
            raise ParityError(f"the {side} did not capture {name!r}, which it was asked for")
