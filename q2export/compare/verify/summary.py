"""The parity report in a few lines: for terminals, and as the summary table of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from q2export.compare.verify.formatting import percent, scientific
from q2export.compare.verify.results import Divergence, ParityReport


@dataclass(frozen=True)
class Check:
    """One row of the summary: what was measured, what is allowed, and whether it holds (None: not judged)."""

    name: str
    measured: str
    limit: str
    holds: bool | None
    note: str


def summary_lines(report: ParityReport) -> list[str]:
    """The verdict, the summary table in aligned columns, what failed, and where it began."""
    checks = list(summary_checks(report))
    marks = {True: "ok", False: "FAILS", None: ""}
    rows = [(check.name, check.measured, check.limit, marks[check.holds], check.note) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{'PASS' if report.passed else 'FAIL'}: {report.info.engine} against {report.info.model}"]
    for name, measured, limit, mark, note in rows:
        cells = (
            name.ljust(widths[0]),
            measured.rjust(widths[1]),
            limit.ljust(widths[2]),
            mark.ljust(widths[3]),
            note,
        )
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [f"failed: {failure}" for failure in report.failures]
    lines += [f"note: {warning}" for warning in report.warnings]
    if report.divergence:
        lines += describe_divergence(report.divergence)
    return lines


def describe_divergence(divergence: Divergence) -> list[str]:
    """Layer, op, error, index and both values, in two lines."""
    point = divergence.point
    where = "outside the layers" if divergence.layer is None else f"layer {divergence.layer}"
    kind = "largest step of a gradual drift" if divergence.gradual else "first divergence"
    head = f"{kind}: {where}, {point.name} ({point.op})"
    if point.non_finite:
        bad = point.non_finite
        return [head, f"  {bad.value} at [{bad.token}, {bad.channel}], {bad.count:,} values are not finite"]
    if point.worst is None or point.max_error is None:
        return [head]
    return [
        f"{head}: relative error {scientific(point.max_error)}, tolerance {scientific(point.tolerance)}",
        f"  at [{point.worst.token}, {point.worst.channel}]: reference {point.worst.reference:.7g}, "
        f"engine {point.worst.engine:.7g}",
    ]


def summary_checks(report: ParityReport) -> Iterator[Check]:
    """The rows of the summary, shared by the page and the terminal."""
    limits, total = report.thresholds, report.total
    if total is None:
        yield Check("Logits", "not finite", "finite", False, "")
    else:
        yield Check(
            "Max abs logit error",
            scientific(total.max_abs_error, 3),
            f"≤ {scientific(limits.max_abs_logit_error)}",
            total.max_abs_error <= limits.max_abs_logit_error,
            f"mean {scientific(total.mean_abs_error)}; rms of the logits {scientific(total.reference_rms)}",
        )
        yield Check(
            "Max KL divergence",
            f"{scientific(total.max_kl, 3)} nats",
            f"≤ {scientific(limits.max_kl_divergence)}",
            total.max_kl <= limits.max_kl_divergence,
            f"mean {scientific(total.mean_kl)}",
        )
        yield Check(
            "Min cosine similarity",
            f"{total.min_cosine:.9f}",
            f"≥ {limits.min_cosine_similarity:.9g}",
            total.min_cosine >= limits.min_cosine_similarity,
            "of the logits of one token",
        )
        yield Check(
            "Top-1 agreement",
            f"{total.top1_matches:,} of {total.tokens:,} tokens",
            f"≥ {percent(limits.min_top1_agreement)}",
            total.top1_agreement_with_ties >= limits.min_top1_agreement,
            f"and {total.top1_ties} near-ties" if total.top1_ties else "no near-ties",
        )
        yield Check(
            "Max relative logit error",
            scientific(total.max_rel_error, 3),
            "",
            None,
            f"mean {scientific(total.mean_rel_error)}",
        )
    yield from _greedy_checks(report)
    yield from _perplexity_checks(report)


def _greedy_checks(report: ParityReport) -> Iterator[Check]:
    results = [s.greedy for s in report.sequences if s.greedy and s.greedy.generated]
    if results:
        generated = sum(result.generated for result in results)
        differences = sum(result.differences for result in results)
        ties = sum(result.ties for result in results)
        yield Check(
            "Greedy tokens",
            f"{generated - differences - ties:,} of {generated:,} identical",
            "all, but for near-ties",
            differences == 0,
            f"{ties} near-ties" if ties else "no near-ties",
        )


def _perplexity_checks(report: ParityReport) -> Iterator[Check]:
    for sequence in report.sequences:
        if sequence.reference_perplexity is not None:
            engine = sequence.engine_perplexity
            measured = "not finite" if engine is None else f"{engine:.6g}"
            note = f"reference {sequence.reference_perplexity:.6g}, over {sequence.tokens:,} tokens"
            yield Check("Perplexity", measured, "", None, note)
