"""Plots of several values per layer on a logarithmic axis, and the parts other figures share with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from q2export.compare.report.numbers import power_of_ten, scientific
from q2export.compare.report.svg import Canvas, LogScale

WIDTH = 760
HEIGHT = 318
LEFT, RIGHT = 76, 18
TOP, BOTTOM = 44, 268
_NAMED_STAGE_WIDTH = 54
_MOST_DOTS = 90


@dataclass(frozen=True)
class Stage:
    """A place on the horizontal axis.

    Attributes:
        name: module path.
        label: on the axis. layer: index of the decoder layer; None for what is outside the layers.
        marked: where the model first diverges.
    """

    name: str
    label: str
    layer: int | None
    marked: bool = False


@dataclass(frozen=True)
class Series:
    """One line of a plot: ``values`` per stage (None where not finite), drawn in class ``style``."""

    label: str
    style: str
    values: Sequence[float | None]


def layer_plot(
    identifier: str,
    title: str,
    axis: str,
    stages: Sequence[Stage],
    series: Sequence[Series],
    *,
    show: Callable[[float], str] = scientific,
) -> str:
    """The plot as SVG.

    Args:
        identifier: unique in the page. title: for screen readers. axis: name of the vertical axis.
        stages: at least one, in order.
        series: a value per stage each.
        show: a value as text, in hints.
    """
    canvas = Canvas(identifier, title, _description(stages, series, show), WIDTH, HEIGHT)
    finite = [value for line in series for value in line.values if value is not None]
    y = LogScale.around(finite, BOTTOM - 18, TOP, BOTTOM)
    x = _positions(stages)
    value_axis(canvas, y, axis)
    if not all(finite):
        canvas.text((LEFT - 8, BOTTOM + 4), "0", "tick end")
    _stage_axis(canvas, x, stages)
    _mark(canvas, x, stages)
    for line in series:
        _draw(canvas, line, x, y, stages, show)
    _legend(canvas, series)
    return canvas.render()


def value_axis(canvas: Canvas, y: LogScale, label: str) -> None:
    """Decades, a line at each, and the name of the axis."""
    for exponent in y.ticks():
        height = y(10.0**exponent)
        canvas.line((LEFT, height), (WIDTH - RIGHT, height), "grid")
        canvas.text((LEFT - 8, height + 4), power_of_ten(exponent), "tick end")
    canvas.line((LEFT, BOTTOM), (WIDTH - RIGHT, BOTTOM), "base")
    canvas.vertical_text((18, (TOP + BOTTOM) / 2), label, "axis middle")


def limit_line(canvas: Canvas, at: float, label: str, bottom: float = BOTTOM) -> None:
    """A vertical line with its label beside it, towards the middle."""
    canvas.line((at, TOP - 12), (at, bottom), "limit")
    anchor = "end" if at > WIDTH / 2 else "start"
    canvas.text((at + (-6 if anchor == "end" else 6), TOP - 8), label, f"limit-label {anchor}")


def _description(stages: Sequence[Stage], series: Sequence[Series], show: Callable[[float], str]) -> str:
    facts = []
    for line in series:
        values = [value for value in line.values if value is not None]
        if values:
            facts.append(f"{line.label} from {show(min(values))} to {show(max(values))}")
    where = "".join(f"; diverges at {stage.name}" for stage in stages if stage.marked)
    return f"{len(stages)} stages from {stages[0].name} to {stages[-1].name}: {', '.join(facts)}{where}."


def _positions(stages: Sequence[Stage]) -> list[float]:
    """Layers share the width evenly; what is outside them keeps room for its name."""
    named = sum(stage.layer is None for stage in stages)
    room = WIDTH - RIGHT - LEFT - 8 - _NAMED_STAGE_WIDTH * named
    layer_width = room / max(1, len(stages) - named)
    positions, at = [], LEFT + 4.0
    for stage in stages:
        width = _NAMED_STAGE_WIDTH if stage.layer is None else layer_width
        positions.append(at + width / 2)
        at += width
    return positions


def _stage_axis(canvas: Canvas, x: Sequence[float], stages: Sequence[Stage]) -> None:
    step = 1 + len(stages) // 25
    for at, stage in zip(x, stages, strict=True):
        if stage.layer is None or stage.layer % step == 0:
            canvas.line((at, BOTTOM), (at, BOTTOM + 4), "base")
            canvas.text((at, BOTTOM + 17), stage.label, "tick middle")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10), "layer", "axis middle")


def _draw(
    canvas: Canvas,
    series: Series,
    x: Sequence[float],
    y: LogScale,
    stages: Sequence[Stage],
    show: Callable[[float], str],
) -> None:
    """Lines between finite neighbours, dots on them, and a cross at the top where a value is not finite."""
    run: list[tuple[float, float]] = []
    for at, stage, value in zip(x, stages, series.values, strict=True):
        if value is None:
            canvas.polyline(run, f"curve {series.style}")
            run = []
            if series.style == "max":
                canvas.text((at, TOP + 10), "✕", "bad middle")
            continue
        run.append((at, y(value)))
        if series.style in ("max", "mean") and len(stages) <= _MOST_DOTS:
            canvas.circle(run[-1], 2.6, f"dot {series.style}", f"{stage.name}: {series.label} {show(value)}")
    canvas.polyline(run, f"curve {series.style}")


def _mark(canvas: Canvas, x: Sequence[float], stages: Sequence[Stage]) -> None:
    half = min([14.0, *((after - before) / 2 for before, after in itertools.pairwise(x))])
    for at, stage in zip(x, stages, strict=True):
        if stage.marked:
            canvas.rect((at - half, TOP), 2 * half, BOTTOM - TOP, "divergence")
            anchor = "start" if at < WIDTH / 4 else "end" if at > 3 * WIDTH / 4 else "middle"
            edge = {"start": at - half, "middle": at, "end": at + half}[anchor]
            canvas.text((edge, TOP - 6), "first divergence", f"bad {anchor}")


def _legend(canvas: Canvas, series: Sequence[Series]) -> None:
    at = float(LEFT)
    for line in series:
        canvas.line((at, 14), (at + 22, 14), f"curve {line.style}")
        canvas.text((at + 28, 18), line.label, "value start")
        at += 60 + 7 * len(line.label)
