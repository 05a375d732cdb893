"""The quality report as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from q2export.compare.quality.results import LayerQuality, QualityReport, WeightQuality
from q2export.compare.quality.summary import quality_checks, worst_weights
from q2export.compare.report.checks import check_table
from q2export.compare.report.page import Column, Command, Facts, Figure, Page, Section, Table
from q2export.compare.report.plot import Series, Stage, layer_plot

_LISTED_WEIGHTS = 50


def quality_page(report: QualityReport) -> Page:
    """Verdict, limits, errors by layer and by weight, and the run."""
    return Page(
        kind="quality",
        name=report.quantized,
        compared_with="compared with the unquantized",
        against=report.model,
        passed=None if report.thresholds is None else report.passed,
        praise="Quantization costs no more than its limits allow.",
        failures=report.failures,
        sections=list(_sections(report)),
    )


def _sections(report: QualityReport) -> Iterator[Section]:
    yield Section("summary", "Summary", [check_table(quality_checks(report))])
    yield _layers(report.layers, report.text.tokens)
    yield _weights(report.weights)
    text = report.text
    windows = f"{text.windows} window{'' if text.windows == 1 else 's'}"
    facts = [
        ("Weights", report.quantization.title),
        ("Logits of", report.logits_of),
        ("Text", f"{text.name}, {text.tokens:,} tokens in {windows}"),
        *report.environment.items(),
    ]
    parts: list[Facts | Command] = [Facts(facts)]
    if report.command:
        parts.append(Command("To repeat this check", report.command))
    yield Section("run", "Run", parts)


def _layers(layers: Sequence[LayerQuality], tokens: int) -> Section:
    rows = [(one.name, _percent(one.output_error), _percent(one.accumulated_error)) for one in layers]
    columns = Column("Layer", "code"), Column("Added", "number"), Column("Accumulated", "number")
    caption = "Error by layer, relative, on a logarithmic axis."
    return Section(
        "layers",
        "Error by layer",
        [
            "The error of what a layer adds to the residual stream, given its unquantized input, and the "
            "difference of the residual streams once everything before is quantized, too. Root mean squares "
            f"over all {tokens:,} tokens.",
            Figure(layer_figure(layers), caption, Table("Error by layer", columns, rows)),
        ],
    )


def layer_figure(layers: Sequence[LayerQuality]) -> str:
    """Both errors of every layer as SVG."""
    stages = [Stage(layer.name, str(index), index) for index, layer in enumerate(layers)]
    series = [
        Series("of what the layer adds", "max", [layer.output_error for layer in layers]),
        Series("accumulated", "mean", [layer.accumulated_error for layer in layers]),
    ]
    return layer_plot("layer-errors", "Error by layer", "relative error", stages, series, show=_percent)


def _weights(weights: Sequence[WeightQuality]) -> Section:
    listed = worst_weights(weights)[:_LISTED_WEIGHTS]
    some = f"; the {len(listed)} largest of {len(weights)}" if len(listed) < len(weights) else ""
    columns = (
        Column("Weight", "code"),
        Column("Shape", "number"),
        Column("Error", "number"),
        Column("Bytes", "number"),
    )
    rows = [
        (one.name, " by ".join(map(str, one.shape)), _percent(one.relative_error), f"{one.stored_bytes:,}")
        for one in listed
    ]
    words = f"Root mean square of the difference over that of the weight{some}."
    return Section("weights", "Weights", [words, Table("Weights", columns, rows)])


def _percent(share: float) -> str:
    return f"{share:.3%}"
