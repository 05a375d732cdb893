"""The quality report in a few lines, for terminals and as the table of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from q2export.compare.quality.results import QualityReport, WeightQuality
from q2export.compare.verify.formatting import scientific

_WORST = 3


@dataclass(frozen=True)
class Row:
    """What was measured, what is allowed, and whether it holds (None: not judged)."""

    name: str
    measured: str
    limit: str
    holds: bool | None
    note: str


def quality_rows(report: QualityReport) -> Iterator[Row]:
    """The rows of the table."""
    text, limits = report.text, report.thresholds
    increase, agreement = text.perplexity_increase, text.top1_agreement
    yield Row(
        "Perplexity",
        f"{increase:+.2%}",
        f"≤ {limits.max_perplexity_increase:+.2%}" if limits else "",
        increase <= limits.max_perplexity_increase if limits else None,
        f"{text.reference_perplexity:.4f} to {text.quantized_perplexity:.4f}",
    )
    yield Row(
        "Mean KL divergence",
        f"{scientific(text.mean_kl, 3)} nats",
        f"≤ {scientific(limits.max_mean_kl)}" if limits else "",
        text.mean_kl <= limits.max_mean_kl if limits else None,
        f"largest {scientific(text.max_kl)}",
    )
    yield Row(
        "Top-1 agreement",
        f"{agreement:.2%}",
        f"≥ {limits.min_top1_agreement:.2%}" if limits else "",
        agreement >= limits.min_top1_agreement if limits else None,
        f"of {text.tokens:,} tokens of {text.name}; logits of {report.logits_of}",
    )
    ratio = report.quantized_bytes / max(1, report.reference_bytes)
    sizes = f"{report.reference_bytes / 1e6:,.1f} to {report.quantized_bytes / 1e6:,.1f} MB"
    yield Row("Size of the weights", f"{ratio:.1%}", "", None, sizes)
    if report.layers:
        worst = max(report.layers, key=lambda layer: layer.output_error)
        note = f"{worst.name}; {report.layers[-1].accumulated_error:.2%} after all layers"
        yield Row("Largest layer error", f"{worst.output_error:.2%}", "", None, note)
    for weight in worst_weights(report.weights)[:_WORST]:
        yield Row("Large weight error", f"{weight.relative_error:.2%}", "", None, weight.name)


def worst_weights(weights: Sequence[WeightQuality]) -> list[WeightQuality]:
    """By relative error, the largest first."""
    return sorted(weights, key=lambda weight: -weight.relative_error)


def quality_lines(report: QualityReport) -> list[str]:
    """The verdict, the table in aligned columns, and what failed."""
    verdict = "" if report.thresholds is None else "PASS: " if report.passed else "FAIL: "
    marks = {True: "ok", False: "FAILS", None: ""}
    rows = [(row.name, row.measured, row.limit, marks[row.holds], row.note) for row in quality_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{verdict}{report.quantized} against {report.model}"]
    for name, measured, limit, mark, note in rows:
        cells = (
            name.ljust(widths[0]),
            measured.rjust(widths[1]),
            limit.ljust(widths[2]),
            mark.ljust(widths[3]),
            note,
        )
        lines.append("  " + "  ".join(cells).rstrip())
    return lines + [f"failed: {failure}" for failure in report.failures]
