"""From measurements to a verdict: which limits were broken, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from q2export.compare.report.numbers import percent
from q2export.compare.verify.results import GreedyDifference, LogitMetrics, SequenceResult
from q2export.contracts.profile import ParityThresholds


@dataclass(frozen=True)
class Verdict:
    """Broken limits and remarks; ``logits_failed`` if logits, and not only greedy tokens, are wrong."""

    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    logits_failed: bool


def judge(
    sequences: Sequence[SequenceResult], total: LogitMetrics | None, thresholds: ParityThresholds
) -> Verdict:
    """Apply the thresholds to all sequences together.

    Args:
        sequences: at least one.
        total: their merged metrics; None if an engine logit is not finite.
        thresholds: what the engine may differ by.
    """
    logits = [*_non_finite(sequences), *(_logit_failures(sequences, total, thresholds) if total else ())]
    greedy = [
        f"{sequence.name}: {describe_difference(sequence.greedy.first_difference)}"
        for sequence in sequences
        if sequence.greedy and sequence.greedy.first_difference
    ]
    ties = sum(sequence.greedy.ties for sequence in sequences if sequence.greedy)
    are = "token is a near-tie" if ties == 1 else "tokens are near-ties"
    warnings = [f"{ties} greedy {are}, decided otherwise by rounding"] if ties else []
    return Verdict((*logits, *greedy), tuple(warnings), bool(logits))


def describe_difference(difference: GreedyDifference) -> str:
    """One clause about a greedy difference, for messages."""
    engine = token_label(difference.engine_token, difference.engine_text)
    reference = token_label(difference.reference_token, difference.reference_text)
    clause = (
        f"greedy token {difference.step} is {engine} where the reference has {reference}, "
        f"{difference.margin:.3g} logits ahead"
    )
    if difference.prefill_agrees:
        clause += "; the engine's own scoring agrees with the reference, so suspect the KV cache"
    return clause


def token_label(token: int, text: str) -> str:
    """``1234 ' the'``, or the id alone if the text is not known."""
    return f"{token} {text!r}" if text else str(token)


def _non_finite(sequences: Sequence[SequenceResult]) -> Iterator[str]:
    for sequence in sequences:
        if bad := sequence.non_finite:
            yield (
                f"{sequence.name}: engine logits are not finite: {bad.value} at token {bad.token}, "
                f"id {bad.channel} ({bad.count} values)"
            )


def _logit_failures(
    sequences: Sequence[SequenceResult], total: LogitMetrics, thresholds: ParityThresholds
) -> Iterator[str]:
    if total.max_abs_error > thresholds.max_abs_logit_error:
        worst = total.worst
        name = next(s.name for s in sequences if s.metrics and s.metrics.worst == worst)
        yield (
            f"max abs logit error {total.max_abs_error:.3g} exceeds {thresholds.max_abs_logit_error:.3g} "
            f"({name}, token {worst.token}, id {worst.channel}: reference {worst.reference:.6g}, "
            f"engine {worst.engine:.6g})"
        )
    if total.max_kl > thresholds.max_kl_divergence:
        yield f"max KL divergence {total.max_kl:.3g} nats exceeds {thresholds.max_kl_divergence:.3g}"
    if total.min_cosine < thresholds.min_cosine_similarity:
        yield f"min cosine similarity {total.min_cosine:.9g} is below {thresholds.min_cosine_similarity:.9g}"
    agreement = total.top1_agreement_with_ties
    if agreement < thresholds.min_top1_agreement:
        differ = total.tokens - total.top1_matches - total.top1_ties
        yield (
            f"top-1 agreement {percent(agreement)} is below {percent(thresholds.min_top1_agreement)} "
            f"({differ} of {total.tokens} tokens differ beyond a tie)"
        )
