"""The parity report in a few lines: for terminals, and as the summary table of the page."""

from __future__ import annotations

from collections.abc import Iterator

from q2export.compare.report.checks import Check, check_lines
from q2export.compare.report.numbers import percent, scientific
from q2export.compare.verify.results import Divergence, ParityReport


def summary_lines(report: ParityReport) -> list[str]:
    """The verdict, the limits in aligned columns, what failed, and where it began."""
    lines = [f"{'PASS' if report.passed else 'FAIL'}: {report.info.engine} against {report.info.model}"]
    lines += check_lines(summary_checks(report))
    lines += [f"failed: {failure}" for failure in report.failures]
    lines += [f"note: {remark}" for remark in remarks(report)]
    if report.divergence:
        lines += describe_divergence(report.divergence)
    return lines


def remarks(report: ParityReport) -> list[str]:
    """What deserves attention, in sentences: warnings, and how the comparison was made fair."""
    found = list(report.warnings)
    if report.router_ties:
        found.append(
            f"experts tie within rounding {report.router_ties:,} times: PyTorch was given the engine's choice"
        )
    if report.logit_scale > 1:
        found.append(
            f"the logits are {report.logit_scale:.3g} times as large as ordinary ones; the limits on their "
            "error and on the divergence are as many times those of the profile"
        )
    return found


def describe_divergence(divergence: Divergence) -> list[str]:
    """Layer, op, error, index and both values, in two lines."""
    found = divergence.activation
    where = "outside the layers" if divergence.layer is None else f"layer {divergence.layer}"
    kind = "largest step of a gradual drift" if divergence.gradual else "first divergence"
    head = f"{kind}: {where}, {found.name} ({found.op})"
    if found.non_finite:
        bad = found.non_finite
        return [head, f"  {bad.value} at [{bad.token}, {bad.channel}], {bad.count:,} values are not finite"]
    if found.worst is None or found.max_error is None:
        return [head]
    return [
        f"{head}: relative error {scientific(found.max_error)}, tolerance {scientific(found.tolerance)}",
        f"  at [{found.worst.token}, {found.worst.channel}]: reference {found.worst.reference:.7g}, "
        f"engine {found.worst.engine:.7g}",
    ]


def summary_checks(report: ParityReport) -> Iterator[Check]:
    """The rows of the summary, shared by the page and the terminal."""
    limits, total = report.limits, report.total
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
            note=f"mean {scientific(total.mean_rel_error)}",
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
            yield Check("Perplexity", measured, note=note)
