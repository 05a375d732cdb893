"""The quality report in a few lines, for terminals and as the table of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from q2export.compare.quality.results import QualityReport, WeightQuality
from q2export.compare.report.checks import Check, check_lines
from q2export.compare.report.numbers import scientific

_WORST = 3


def quality_checks(report: QualityReport) -> Iterator[Check]:
    """The rows of the summary, shared by the page and the terminal."""
    text, limits = report.text, report.thresholds
    increase, agreement = text.perplexity_increase, text.top1_agreement
    yield Check(
        "Perplexity",
        f"{increase:+.2%}",
        f"≤ {limits.max_perplexity_increase:+.2%}" if limits else "",
        increase <= limits.max_perplexity_increase if limits else None,
        f"{text.reference_perplexity:.4f} to {text.quantized_perplexity:.4f}",
    )
    yield Check(
        "Mean KL divergence",
        f"{scientific(text.mean_kl, 3)} nats",
        f"≤ {scientific(limits.max_mean_kl)}" if limits else "",
        text.mean_kl <= limits.max_mean_kl if limits else None,
        f"largest {scientific(text.max_kl)}",
    )
    yield Check(
        "Top-1 agreement",
        f"{agreement:.2%}",
        f"≥ {limits.min_top1_agreement:.2%}" if limits else "",
        agreement >= limits.min_top1_agreement if limits else None,
        f"of {text.tokens:,} tokens of {text.name}; logits of {report.logits_of}",
    )
    ratio = report.quantized_bytes / max(1, report.reference_bytes)
    sizes = f"{report.reference_bytes / 1e6:,.1f} to {report.quantized_bytes / 1e6:,.1f} MB"
    yield Check("Size of the weights", f"{ratio:.1%}", note=sizes)
    if report.layers:
        worst = max(report.layers, key=lambda layer: layer.output_error)
        note = f"{worst.name}; {report.layers[-1].accumulated_error:.2%} after all layers"
        yield Check("Largest layer error", f"{worst.output_error:.2%}", note=note)
    for weight in worst_weights(report.weights)[:_WORST]:
        yield Check("Large weight error", f"{weight.relative_error:.2%}", note=weight.name)


def worst_weights(weights: Sequence[WeightQuality]) -> list[WeightQuality]:
    """By relative error, the largest first."""
    return sorted(weights, key=lambda weight: -weight.relative_error)


def quality_lines(report: QualityReport) -> list[str]:
    """The verdict, the limits in aligned columns, and what failed."""
    verdict = "" if report.thresholds is None else "PASS: " if report.passed else "FAIL: "
    lines = [f"{verdict}{report.quantized} against {report.model}"]
    lines += check_lines(quality_checks(report))
    return lines + [f"failed: {failure}" for failure in report.failures]
