"""From a failed comparison to the layer and the tensor where it began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q2export.compare.verify.activation_differences import (
    FLOAT32_NOISE,
    first_divergence,
    layer_differences,
    stage_differences,
)
from q2export.compare.verify.activations import HEAD, Activation
from q2export.compare.verify.engine_probe import EngineProbe
from q2export.compare.verify.judge import Verdict
from q2export.compare.verify.results import ActivationDifference, Curve, Divergence, SequenceResult
from q2export.compare.verify.router_ties import RouterTies

if TYPE_CHECKING:
    from q2export.exporter.reference import CheckpointReference, Run

MIN_CURVE_TOKENS = 16


@dataclass(frozen=True)
class Findings:
    """What looking at intermediate tensors gave."""

    curve: Curve | None
    divergence: Divergence | None
    warnings: tuple[str, ...]


def stages_of(probe: EngineProbe) -> list[Activation]:
    """What the error curve is made of: the residual stream and what is outside the layers."""
    return [activation for activation in probe.activations() if activation.is_stage]


def capture_names(probe: EngineProbe) -> list[str]:
    """Activations the reference must capture for the error curve; the head's are its logits."""
    return [stage.name for stage in stages_of(probe) if stage.name != HEAD]


def localise(
    reference: CheckpointReference,
    probe: EngineProbe,
    run: Run,
    sequences: Sequence[SequenceResult],
    tokens: Sequence[Sequence[int]],
    verdict: Verdict,
    ties: RouterTies | None = None,
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
        ties: of the reference's pass, where experts tied.
    """
    stages = stages_of(probe)
    if not stages:
        return Findings(None, None, ("the engine exposes no intermediate tensors: no error curve",))
    focus = max(range(len(tokens)), key=lambda index: _severity(sequences[index]))
    prefix = tokens[focus][: _prefix_length(sequences[focus])]
    errors = _stage_differences(probe, stages, run, focus, prefix)
    reproduced = _reproduces(errors, sequences[focus])
    diverges = any(stage.diverges for stage in errors)
    divergence = None
    if verdict.failures and (diverges or (verdict.logits_failed and reproduced)):
        divergence = _find_origin(reference, probe, errors, prefix, ties.only(focus) if ties else None)
    warnings = tuple(_warnings(errors, verdict, reproduced))
    return Findings(Curve(sequences[focus].name, len(prefix), errors), divergence, warnings)


def _severity(sequence: SequenceResult) -> float:
    return float("inf") if sequence.metrics is None else sequence.metrics.max_abs_error


def _prefix_length(sequence: SequenceResult) -> int:
    worst = sequence.metrics.worst.token if sequence.metrics else 0
    worst = sequence.non_finite.token if sequence.non_finite else worst
    return max(worst + 1, min(MIN_CURVE_TOKENS, sequence.tokens))


def _stage_differences(
    probe: EngineProbe, stages: Sequence[Activation], run: Run, focus: int, prefix: Sequence[int]
) -> tuple[ActivationDifference, ...]:
    rows = {**run.captures, HEAD: run.logits}
    # Attention is causal: the first rows of a longer sequence are those of its prefix.
    expected = {stage.name: rows[stage.name][focus][: len(prefix)] for stage in stages}
    return stage_differences(stages, expected, probe.capture(prefix, list(expected)), FLOAT32_NOISE)


def _reproduces(errors: Sequence[ActivationDifference], sequence: SequenceResult) -> bool:
    """Whether the logit error is still there when intermediate tensors are exposed."""
    if any(stage.diverges for stage in errors):
        return True
    if sequence.metrics is None:
        return False
    head = errors[-1]
    return head.name != HEAD or (head.max_abs or 0.0) >= 0.5 * sequence.metrics.max_abs_error


def _warnings(errors: Sequence[ActivationDifference], verdict: Verdict, reproduced: bool) -> Iterator[str]:
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
    reference: CheckpointReference,
    probe: EngineProbe,
    errors: Sequence[ActivationDifference],
    prefix: Sequence[int],
    ties: RouterTies | None,
) -> Divergence:
    stage = first_divergence(errors)
    inner = [
        one
        for one in probe.activations()
        if stage.layer is not None and one.layer == stage.layer and not one.is_stage
    ]
    origin = stage
    if inner:
        names = [one.name for one in inner]
        captures = reference.run([prefix], names, ties).captures
        expected = {name: captures[name][0] for name in names}
        engine = probe.capture(prefix, names)
        origin = first_divergence(layer_differences(inner, expected, engine, stage, FLOAT32_NOISE))
    return Divergence(stage.layer, origin, gradual=not origin.diverges)
