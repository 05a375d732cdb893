"""The figures of the parity report, as inline SVG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from q2export.compare.verify.formatting import percent, power_of_ten, scientific
from q2export.compare.verify.results import Curve, Divergence, Histogram, PointError, SequenceResult
from q2export.compare.verify.svg import Canvas, LinearScale, LogScale

WIDTH = 760
LEFT, RIGHT = 76, 18
PLOT_TOP, PLOT_BOTTOM = 44, 268
CURVE_HEIGHT = 318
ROW_HEIGHT = 26
NAMED_STAGE_WIDTH = 54


@dataclass(frozen=True)
class Series:
    """One line of a plot: ``values`` per stage (None where not finite), drawn in class ``style``."""

    label: str
    style: str
    values: Sequence[float | None]


def stage_label(point: PointError) -> str:
    """Short name of a stage on an axis: the layer's number, or embed, norm, head."""
    short = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
    return str(point.layer) if point.layer is not None else short.get(point.name, point.name)


def relative_error_figure(curve: Curve, divergence: Divergence | None) -> str:
    """Relative error per stage with the tolerance, which follows the error of the stage before."""
    stages = curve.stages
    series = [
        Series("max", "max", [stage.max_error for stage in stages]),
        Series("mean", "mean", [stage.mean_error for stage in stages]),
        Series("tolerance", "tolerance", [stage.tolerance for stage in stages]),
    ]
    return _curve_figure(
        "relative-error", "Relative error by layer", "relative error", curve, series, divergence
    )


def absolute_error_figure(curve: Curve, divergence: Divergence | None) -> str:
    """Absolute error per stage beside the size of the tensor."""
    stages = curve.stages
    series = [
        Series("max abs", "max", [stage.max_abs for stage in stages]),
        Series("mean abs", "mean", [stage.mean_abs for stage in stages]),
        Series("rms of the reference", "context", [stage.reference_rms for stage in stages]),
    ]
    return _curve_figure(
        "absolute-error", "Absolute error by layer", "absolute error", curve, series, divergence
    )


def histogram_figure(histogram: Histogram, limit: float) -> str:
    """How many logits are how far off, both axes logarithmic, with the limit as a line."""
    used = [index for index, count in enumerate(histogram.counts) if count]
    first = histogram.first + (min(used) // histogram.per_decade if used else 0)
    last = histogram.first + (max(used) // histogram.per_decade + 1 if used else 1)
    total = sum(histogram.counts) + histogram.zeros
    canvas = Canvas(
        "logit-histogram",
        "Histogram of absolute logit errors",
        f"{total:,} logits, {histogram.zeros:,} of them exactly equal. The errors of the others lie between "
        f"{power_of_ten(first)} and {power_of_ten(last)}; the limit is {scientific(limit)}.",
        WIDTH,
        CURVE_HEIGHT,
    )
    y = LogScale.around([1, *histogram.counts, histogram.zeros], PLOT_BOTTOM, PLOT_TOP, PLOT_BOTTOM)
    shows_limit = [10.0**first, 10.0**last, *([limit] if limit > 0 else [])]
    x = LogScale.around(shows_limit, LEFT + 64, WIDTH - RIGHT, LEFT + 6)
    _value_axis(canvas, y, "logits")
    _bar(canvas, LEFT + 6, 40, y, histogram.zeros, "bar zero", f"exactly equal: {histogram.zeros:,}")
    canvas.text((LEFT + 26, PLOT_BOTTOM + 17), "equal", "tick middle")
    for exponent in x.ticks():
        canvas.text((x(10.0**exponent), PLOT_BOTTOM + 17), power_of_ten(exponent), "tick middle")
    for index in used:
        low = 10.0 ** (histogram.first + index / histogram.per_decade)
        high = 10.0 ** (histogram.first + (index + 1) / histogram.per_decade)
        count = histogram.counts[index]
        style = "bar over" if low >= limit else "bar"
        hint = f"{scientific(low)} to {scientific(high)}: {count:,}"
        _bar(canvas, x(low) + 0.5, x(high) - x(low) - 1, y, count, style, hint)
    if limit > 0:
        _limit_line(canvas, x(limit), f"limit {scientific(limit)}")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, CURVE_HEIGHT - 8), "absolute logit error", "axis middle")
    return canvas.render()


def top1_figure(sequences: Sequence[SequenceResult], limit: float) -> str:
    """A bar per sequence: positions at which both sides rank the same token first, then near-ties."""
    label_end, end = 84, WIDTH - 150
    bottom = PLOT_TOP + ROW_HEIGHT * len(sequences)
    canvas = Canvas(
        "top1-agreement",
        "Top-1 agreement per sequence",
        "; ".join(f"{s.name}: {agreement_text(s)}" for s in sequences) + f". The limit is {percent(limit)}.",
        WIDTH,
        bottom + 30,
    )
    x = LinearScale(0, 1, label_end, end)
    for share in (0, 0.25, 0.5, 0.75, 1):
        canvas.line((x(share), PLOT_TOP), (x(share), bottom), "grid")
        canvas.text((x(share), bottom + 17), f"{share:.0%}", "tick middle")
    for row, sequence in enumerate(sequences):
        top = PLOT_TOP + ROW_HEIGHT * row
        canvas.text((label_end - 8, top + 17), sequence.name, "tick end")
        canvas.text((end + 10, top + 17), agreement_text(sequence), "value start")
        if sequence.metrics is None:
            continue
        same, judged = sequence.metrics.top1_agreement, sequence.metrics.top1_agreement_with_ties
        canvas.rect((x(0), top + 5), x(same) - x(0), 15, "bar", f"{same:.2%} agree")
        canvas.rect((x(same), top + 5), x(judged) - x(same), 15, "bar tie", f"{judged - same:.2%} near-ties")
    _limit_line(canvas, x(limit), f"limit {percent(limit)}", bottom)
    return canvas.render()


def greedy_figure(sequences: Sequence[SequenceResult]) -> str:
    """A bar per prompt: how far greedy output is identical, and where it first differs."""
    prompts = [(s, s.greedy) for s in sequences if s.greedy and s.greedy.generated]
    longest = max((greedy.generated for _, greedy in prompts), default=1)
    label_end, end, top0 = 84, WIDTH - 190, 14
    bottom = top0 + ROW_HEIGHT * len(prompts)
    facts = [f"{s.name}: {_greedy_text(s)}" for s, _ in prompts]
    canvas = Canvas("greedy", "Greedy output", "; ".join(facts) + ".", WIDTH, bottom + 42)
    x = LinearScale(0, longest, label_end, end)
    for row, (sequence, greedy) in enumerate(prompts):
        top = top0 + ROW_HEIGHT * row
        first = greedy.first
        same = first.step if first else greedy.generated
        canvas.text((label_end - 8, top + 17), sequence.name, "tick end")
        canvas.rect((x(0), top + 5), x(same) - x(0), 15, "bar", f"{same} identical tokens")
        if first:
            canvas.rect((x(same), top + 5), x(greedy.generated) - x(same), 15, "bar rest")
            canvas.circle((x(same), top + 12.5), 6, "mark tie" if first.tie else "mark bad")
        canvas.text((end + 12, top + 17), _greedy_text(sequence), "value start")
    for step in sorted({0, longest // 4, longest // 2, 3 * longest // 4, longest}):
        canvas.text((x(step), bottom + 17), str(step), "tick middle")
    canvas.text(((label_end + end) / 2, bottom + 36), "generated tokens", "axis middle")
    return canvas.render()


def agreement_text(sequence: SequenceResult) -> str:
    """``68 of 70 (2 ties)``."""
    if sequence.metrics is None:
        return "not finite"
    ties = f" ({sequence.metrics.top1_ties} near-ties)" if sequence.metrics.top1_ties else ""
    return f"{sequence.metrics.top1_matches} of {sequence.metrics.tokens}{ties}"


def _greedy_text(sequence: SequenceResult) -> str:
    greedy = sequence.greedy
    if greedy is None or greedy.first is None:
        return "identical"
    return f"{'near-tie' if greedy.first.tie else 'differs'} at token {greedy.first.step}"


def _curve_figure(
    identifier: str,
    title: str,
    axis: str,
    curve: Curve,
    series: Sequence[Series],
    divergence: Divergence | None,
) -> str:
    stages = curve.stages
    canvas = Canvas(identifier, title, _curve_description(series, stages, divergence), WIDTH, CURVE_HEIGHT)
    finite = [value for line in series for value in line.values if value is not None]
    y = LogScale.around(finite, PLOT_BOTTOM - 18, PLOT_TOP, PLOT_BOTTOM)
    x = _stage_positions(stages)
    _value_axis(canvas, y, axis)
    if not all(finite):
        canvas.text((LEFT - 8, PLOT_BOTTOM + 4), "0", "tick end")
    _stage_axis(canvas, x, stages)
    if divergence is not None:
        _mark_divergence(canvas, x, stages, divergence)
    for line in series:
        _draw_series(canvas, line, x, y, stages)
    _legend(canvas, series)
    return canvas.render()


def _curve_description(
    series: Sequence[Series], stages: Sequence[PointError], divergence: Divergence | None
) -> str:
    facts = []
    for line in series:
        values = [value for value in line.values if value is not None]
        if values:
            facts.append(f"{line.label} from {scientific(min(values))} to {scientific(max(values))}")
    where = f"; diverges at {divergence.point.name}" if divergence else ""
    return f"{len(stages)} stages from {stages[0].name} to {stages[-1].name}: {', '.join(facts)}{where}."


def _value_axis(canvas: Canvas, y: LogScale, label: str) -> None:
    for exponent in y.ticks():
        height = y(10.0**exponent)
        canvas.line((LEFT, height), (WIDTH - RIGHT, height), "grid")
        canvas.text((LEFT - 8, height + 4), power_of_ten(exponent), "tick end")
    canvas.line((LEFT, PLOT_BOTTOM), (WIDTH - RIGHT, PLOT_BOTTOM), "base")
    canvas.vertical_text((18, (PLOT_TOP + PLOT_BOTTOM) / 2), label, "axis middle")


def _stage_positions(stages: Sequence[PointError]) -> list[float]:
    """Layers share the width evenly; embedding, norm and head keep room for their names."""
    named = sum(stage.layer is None for stage in stages)
    room = WIDTH - RIGHT - LEFT - 8 - NAMED_STAGE_WIDTH * named
    layer_width = room / max(1, len(stages) - named)
    positions, at = [], LEFT + 4.0
    for stage in stages:
        width = NAMED_STAGE_WIDTH if stage.layer is None else layer_width
        positions.append(at + width / 2)
        at += width
    return positions


def _stage_axis(canvas: Canvas, x: Sequence[float], stages: Sequence[PointError]) -> None:
    step = 1 + len(stages) // 25
    for at, stage in zip(x, stages, strict=True):
        if stage.layer is None or stage.layer % step == 0:
            canvas.line((at, PLOT_BOTTOM), (at, PLOT_BOTTOM + 4), "base")
            canvas.text((at, PLOT_BOTTOM + 17), stage_label(stage), "tick middle")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, CURVE_HEIGHT - 10), "layer", "axis middle")


def _draw_series(
    canvas: Canvas, series: Series, x: Sequence[float], y: LogScale, stages: Sequence[PointError]
) -> None:
    """Lines between finite neighbours, dots on them, and a cross at the top where a value is not finite."""
    run: list[tuple[float, float]] = []
    for index, value in enumerate(series.values):
        if value is None:
            canvas.polyline(run, f"curve {series.style}")
            run = []
            if series.style == "max":
                canvas.text((x[index], PLOT_TOP + 10), "✕", "bad middle")
            continue
        at = (x[index], y(value))
        run.append(at)
        if series.style in ("max", "mean") and len(stages) <= 90:
            hint = f"{stages[index].name}: {series.label} {scientific(value)}"
            canvas.circle(at, 2.6, f"dot {series.style}", hint)
    canvas.polyline(run, f"curve {series.style}")


def _mark_divergence(
    canvas: Canvas, x: Sequence[float], stages: Sequence[PointError], divergence: Divergence
) -> None:
    gaps = [after - before for before, after in itertools.pairwise(x)]
    half = min([14.0, *(gap / 2 for gap in gaps)])
    for at, stage in zip(x, stages, strict=True):
        inside = divergence.layer is not None and stage.layer == divergence.layer
        if inside or stage.name == divergence.point.name:
            canvas.rect((at - half, PLOT_TOP), 2 * half, PLOT_BOTTOM - PLOT_TOP, "divergence")
            anchor = "start" if at < WIDTH / 4 else "end" if at > 3 * WIDTH / 4 else "middle"
            edge = {"start": at - half, "middle": at, "end": at + half}[anchor]
            canvas.text((edge, PLOT_TOP - 6), "first divergence", f"bad {anchor}")


def _legend(canvas: Canvas, series: Sequence[Series]) -> None:
    at = float(LEFT)
    for line in series:
        canvas.line((at, 14), (at + 22, 14), f"curve {line.style}")
        canvas.text((at + 28, 18), line.label, "value start")
        at += 60 + 7 * len(line.label)


def _bar(canvas: Canvas, left: float, width: float, y: LogScale, count: int, style: str, hint: str) -> None:
    if count:
        # A single logit would have no height on a logarithmic axis that starts at 1.
        top = min(y(count), PLOT_BOTTOM - 3)
        canvas.rect((left, top), width, PLOT_BOTTOM - top, style, hint)


def _limit_line(canvas: Canvas, at: float, label: str, bottom: float = PLOT_BOTTOM) -> None:
    canvas.line((at, PLOT_TOP - 12), (at, bottom), "limit")
    anchor = "end" if at > WIDTH / 2 else "start"
    canvas.text((at + (-6 if anchor == "end" else 6), PLOT_TOP - 8), label, f"limit-label {anchor}")
