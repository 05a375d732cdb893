"""The figures of the parity report, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from q2export.compare.report.numbers import percent, power_of_ten, scientific
from q2export.compare.report.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    Stage,
    layer_plot,
    limit_line,
    value_axis,
)
from q2export.compare.report.svg import Canvas, LinearScale, LogScale
from q2export.compare.verify.results import Curve, Divergence, Histogram, SequenceResult

_ROW_HEIGHT = 26
_SHORT_NAMES = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}


def relative_error_figure(curve: Curve, divergence: Divergence | None) -> str:
    """Relative error per stage with the tolerance, which follows the error of the stage before."""
    stages = curve.stages
    series = [
        Series("max", "max", [stage.max_error for stage in stages]),
        Series("mean", "mean", [stage.mean_error for stage in stages]),
        Series("tolerance", "tolerance", [stage.tolerance for stage in stages]),
    ]
    at = _stages(curve, divergence)
    return layer_plot("relative-error", "Relative error by layer", "relative error", at, series)


def absolute_error_figure(curve: Curve, divergence: Divergence | None) -> str:
    """Absolute error per stage beside the size of the tensor."""
    stages = curve.stages
    series = [
        Series("max abs", "max", [stage.max_abs for stage in stages]),
        Series("mean abs", "mean", [stage.mean_abs for stage in stages]),
        Series("rms of the reference", "context", [stage.reference_rms for stage in stages]),
    ]
    at = _stages(curve, divergence)
    return layer_plot("absolute-error", "Absolute error by layer", "absolute error", at, series)


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
        HEIGHT,
    )
    y = LogScale.around([1, *histogram.counts, histogram.zeros], BOTTOM, TOP, BOTTOM)
    shows_limit = [10.0**first, 10.0**last, *([limit] if limit > 0 else [])]
    x = LogScale.around(shows_limit, LEFT + 64, WIDTH - RIGHT, LEFT + 6)
    value_axis(canvas, y, "logits")
    _bar(canvas, LEFT + 6, 40, y, histogram.zeros, "bar zero", f"exactly equal: {histogram.zeros:,}")
    canvas.text((LEFT + 26, BOTTOM + 17), "equal", "tick middle")
    for exponent in x.ticks():
        canvas.text((x(10.0**exponent), BOTTOM + 17), power_of_ten(exponent), "tick middle")
    for index in used:
        low = 10.0 ** (histogram.first + index / histogram.per_decade)
        high = 10.0 ** (histogram.first + (index + 1) / histogram.per_decade)
        count = histogram.counts[index]
        style = "bar over" if low >= limit else "bar"
        hint = f"{scientific(low)} to {scientific(high)}: {count:,}"
        _bar(canvas, x(low) + 0.5, x(high) - x(low) - 1, y, count, style, hint)
    if limit > 0:
        limit_line(canvas, x(limit), f"limit {scientific(limit)}")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), "absolute logit error", "axis middle")
    return canvas.render()


def top1_figure(sequences: Sequence[SequenceResult], limit: float) -> str:
    """A bar per sequence: positions at which both sides rank the same token first, then near-ties."""
    label_end, end = 84, WIDTH - 150
    bottom = TOP + _ROW_HEIGHT * len(sequences)
    canvas = Canvas(
        "top1-agreement",
        "Top-1 agreement per sequence",
        "; ".join(f"{s.name}: {agreement_text(s)}" for s in sequences) + f". The limit is {percent(limit)}.",
        WIDTH,
        bottom + 30,
    )
    x = LinearScale(0, 1, label_end, end)
    for share in (0, 0.25, 0.5, 0.75, 1):
        canvas.line((x(share), TOP), (x(share), bottom), "grid")
        canvas.text((x(share), bottom + 17), f"{share:.0%}", "tick middle")
    for row, sequence in enumerate(sequences):
        top = TOP + _ROW_HEIGHT * row
        canvas.text((label_end - 8, top + 17), sequence.name, "tick end")
        canvas.text((end + 10, top + 17), agreement_text(sequence), "value start")
        if sequence.metrics is None:
            continue
        same, judged = sequence.metrics.top1_agreement, sequence.metrics.top1_agreement_with_ties
        canvas.rect((x(0), top + 5), x(same) - x(0), 15, "bar", f"{same:.2%} agree")
        canvas.rect((x(same), top + 5), x(judged) - x(same), 15, "bar tie", f"{judged - same:.2%} near-ties")
    limit_line(canvas, x(limit), f"limit {percent(limit)}", bottom)
    return canvas.render()


def greedy_figure(sequences: Sequence[SequenceResult]) -> str:
    """A bar per prompt: how far greedy output is identical, and where it first differs."""
    prompts = [(s, s.greedy) for s in sequences if s.greedy and s.greedy.generated]
    longest = max((greedy.generated for _, greedy in prompts), default=1)
    label_end, end, top0 = 84, WIDTH - 190, 14
    bottom = top0 + _ROW_HEIGHT * len(prompts)
    facts = [f"{s.name}: {_greedy_text(s)}" for s, _ in prompts]
    canvas = Canvas("greedy", "Greedy output", "; ".join(facts) + ".", WIDTH, bottom + 42)
    x = LinearScale(0, longest, label_end, end)
    for row, (sequence, greedy) in enumerate(prompts):
        top = top0 + _ROW_HEIGHT * row
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


def _stages(curve: Curve, divergence: Divergence | None) -> list[Stage]:
    """Places on the axis: the layers by number, embedding, norm and head by name."""
    at = None if divergence is None else (divergence.layer, divergence.activation.name)
    return [
        Stage(
            stage.name,
            _SHORT_NAMES.get(stage.name, stage.name) if stage.layer is None else str(stage.layer),
            stage.layer,
            at is not None and (stage.name == at[1] or (stage.layer is not None and stage.layer == at[0])),
        )
        for stage in curve.stages
    ]


def _bar(canvas: Canvas, left: float, width: float, y: LogScale, count: int, style: str, hint: str) -> None:
    if count:
        # A single logit would have no height on a logarithmic axis that starts at 1.
        top = min(y(count), BOTTOM - 3)
        canvas.rect((left, top), width, BOTTOM - top, style, hint)
