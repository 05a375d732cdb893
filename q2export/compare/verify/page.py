"""The parity report as a page."""

from __future__ import annotations

from collections.abc import Iterator

from q2export.compare.report.checks import check_table
from q2export.compare.report.numbers import scientific
from q2export.compare.report.page import (
    Badge,
    Cell,
    Column,
    Command,
    Facts,
    Figure,
    Page,
    Samples,
    Section,
    Table,
)
from q2export.compare.verify import figures
from q2export.compare.verify.judge import token_label
from q2export.compare.verify.results import (
    Curve,
    Divergence,
    Histogram,
    LogitMetrics,
    ParityReport,
    SequenceResult,
)
from q2export.compare.verify.summary import remarks, summary_checks


def parity_page(report: ParityReport) -> Page:
    """Verdict, where it diverges, limits, errors by layer, logits, tokens, environment."""
    return Page(
        kind="parity",
        name=report.info.engine,
        compared_with="compared with the PyTorch reference of",
        against=report.info.model,
        passed=report.passed,
        praise="The engine equals the reference within the limits of its profile.",
        failures=report.failures,
        remarks=remarks(report),
        sections=list(_sections(report)),
    )


def _sections(report: ParityReport) -> Iterator[Section]:
    if report.divergence is not None:
        yield _divergence(report.divergence)
    yield Section("summary", "Summary", [check_table(summary_checks(report))])
    if report.curve is not None:
        yield _layers(report.curve, report.divergence)
    if report.total is not None:
        yield _logits(report.total, report.limits.max_abs_logit_error)
    yield _tokens(report)
    parts: list[Facts | Command] = [Facts(list(report.info.environment.items()))]
    if report.info.command:
        parts.append(Command("To repeat this check", report.info.command))
    yield Section("environment", "Environment", parts)


def _divergence(divergence: Divergence) -> Section:
    found = divergence.activation
    layer = "outside the layers" if divergence.layer is None else f"in layer {divergence.layer}"
    what = (
        "No single step exceeds what rounding explains; the error grows gradually, most of all at"
        if divergence.gradual
        else "The first tensor that differs by more than rounding explains is"
    )
    facts = [("Op", found.op)]
    if (bad := found.non_finite) is not None:
        facts += [("Value", bad.value), ("Index", f"[{bad.token}, {bad.channel}]")]
        facts += [("Not finite", f"{bad.count:,} values")]
    elif found.worst is not None:
        facts += [("Relative error", _number(found.max_error, 3)), ("Tolerance", scientific(found.tolerance))]
        facts += [("Index", f"[{found.worst.token}, {found.worst.channel}]")]
        facts += [("Reference", f"{found.worst.reference:.7g}"), ("Engine", f"{found.worst.engine:.7g}")]
    return Section("divergence", "Where it diverges", [f"{what} {found.name}, {layer}.", Facts(facts)])


def _layers(curve: Curve, divergence: Divergence | None) -> Section:
    titles = ("Max rel.", "Mean rel.", "Tolerance", "Max abs", "Mean abs", "Rms")
    rows = [
        (
            stage.name,
            _number(stage.max_error),
            _number(stage.mean_error),
            scientific(stage.tolerance),
            _number(stage.max_abs),
            _number(stage.mean_abs),
            scientific(stage.reference_rms),
        )
        for stage in curve.stages
    ]
    values = Table(
        "Error by layer",
        (Column("Tensor", "code"), *(Column(title, "number") for title in titles)),
        rows,
        wrong=[index for index, stage in enumerate(curve.stages) if stage.diverges],
    )
    return Section(
        "layers",
        "Error by layer",
        [
            f"Residual stream after every layer, over the first {curve.tokens} tokens of {curve.sequence}, "
            "the sequence with the largest logit error.",
            Figure(
                figures.relative_error_figure(curve, divergence),
                "Error relative to the scale of the tensor. A layer diverges where the maximum rises above "
                "the tolerance, which allows for the error of the layer before.",
                values,
            ),
            Figure(
                figures.absolute_error_figure(curve, divergence),
                "Absolute error, beside the root mean square of the reference tensor.",
            ),
        ],
    )


def _logits(total: LogitMetrics, limit: float) -> Section:
    caption = "Every logit of every compared position, by absolute error. Both axes are logarithmic."
    figure = Figure(figures.histogram_figure(total.histogram, limit), caption, _bins(total.histogram))
    return Section("logits", "Logit errors", [figure])


def _bins(histogram: Histogram) -> Table:
    def edge(index: int) -> str:
        return scientific(10 ** (histogram.first + index / histogram.per_decade))

    counts = enumerate(histogram.counts)
    rows = [("0", "0", f"{histogram.zeros:,}")]
    rows += [(edge(index), edge(index + 1), f"{count:,}") for index, count in counts if count]
    return Table("Logit errors", [Column(title, "number") for title in ("From", "To", "Logits")], rows)


def _tokens(report: ParityReport) -> Section:
    agreement = Figure(
        figures.top1_figure(report.sequences, report.thresholds.min_top1_agreement),
        "Positions at which both sides rank the same token first. A near-tie is a difference the limit on "
        "logit errors explains.",
    )
    parts: list[Figure | Table | Samples] = [agreement]
    if any(one.greedy and one.greedy.generated for one in report.sequences):
        caption = "Greedy output: identical up to the mark, where it first differs from the reference."
        parts.append(Figure(figures.greedy_figure(report.sequences), caption))
    columns = (
        Column("Sequence"),
        Column("Tokens", "number"),
        Column("Max abs", "number"),
        Column("Top-1", "number"),
        Column("First difference"),
        Column("Reference", "code"),
        Column("Engine", "code"),
        Column("Margin", "number"),
    )
    parts.append(Table("Tokens", columns, [_token_row(one) for one in report.sequences]))
    if any(one.prompt_text for one in report.sequences):
        texts = [(one.name, one.prompt_text, one.generated_text) for one in report.sequences]
        parts.append(Samples("Compared text", texts))
    return Section("tokens", "Tokens", parts)


def _token_row(sequence: SequenceResult) -> list[Cell]:
    error = sequence.metrics.max_abs_error if sequence.metrics else None
    row: list[Cell] = [sequence.name, str(sequence.tokens), _number(error), figures.agreement_text(sequence)]
    greedy = sequence.greedy
    if greedy is None or not greedy.generated:
        return [*row, "scored only", "", "", ""]
    if (first := greedy.first) is None:
        return [*row, Badge("✓ identical", "good"), "", "", ""]
    at = f" at token {first.step}"
    return [
        *row,
        Badge("≈ near-tie", "tie", at) if first.tie else Badge("✕ differs", "wrong", at),
        token_label(first.reference_token, first.reference_text),
        token_label(first.engine_token, first.engine_text),
        scientific(first.margin),
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "not finite" if value is None else scientific(value, digits)
