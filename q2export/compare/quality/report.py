"""The quality report as one self-contained HTML page, in the style of the parity report."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import jinja2

from q2export.compare.quality.results import LayerQuality, QualityReport
from q2export.compare.quality.summary import quality_rows, worst_weights
from q2export.compare.verify.formatting import power_of_ten, scientific
from q2export.compare.verify.report import write_page
from q2export.compare.verify.svg import Canvas, LogScale

_WIDTH, _HEIGHT = 760, 318
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 18, 44, 268
_LISTED_WEIGHTS = 50


def write_quality_page(report: QualityReport, path: Path) -> None:
    """Write the page to ``path``; it is whole or absent.

    Raises:
        OSError: if the folder cannot be written.
    """
    write_page(render_quality_page(report), path)


def render_quality_page(report: QualityReport) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["scientific"] = scientific
    template = environment.from_string(_resource("q2export.compare.quality", "report.html"))
    return template.render(
        report=report,
        style=_resource("q2export.compare.verify", "report.css"),
        rows=list(quality_rows(report)),
        figure=layer_figure(report.layers) if report.layers else "",
        weights=worst_weights(report.weights)[:_LISTED_WEIGHTS],
    )


def layer_figure(layers: tuple[LayerQuality, ...]) -> str:
    """Both errors of every layer, on a logarithmic axis."""
    series = (
        ("of what the layer adds", "max", [layer.output_error for layer in layers]),
        ("accumulated", "mean", [layer.accumulated_error for layer in layers]),
    )
    facts = ", ".join(f"{label} from {min(v):.2%} to {max(v):.2%}" for label, _, v in series)
    description = f"{len(layers)} layers; error {facts}."
    canvas = Canvas("layer-errors", "Error by layer", description, _WIDTH, _HEIGHT)
    values = [value for _, _, line in series for value in line]
    y = LogScale.around(values, _BOTTOM - 18, _TOP, _BOTTOM)
    width = (_WIDTH - _RIGHT - _LEFT) / len(layers)
    x = [_LEFT + (index + 0.5) * width for index in range(len(layers))]
    for exponent in y.ticks():
        height = y(10.0**exponent)
        canvas.line((_LEFT, height), (_WIDTH - _RIGHT, height), "grid")
        canvas.text((_LEFT - 8, height + 4), power_of_ten(exponent), "tick end")
    canvas.line((_LEFT, _BOTTOM), (_WIDTH - _RIGHT, _BOTTOM), "base")
    canvas.vertical_text((18, (_TOP + _BOTTOM) / 2), "relative error", "axis middle")
    for index in range(0, len(layers), 1 + len(layers) // 25):
        canvas.line((x[index], _BOTTOM), (x[index], _BOTTOM + 4), "base")
        canvas.text((x[index], _BOTTOM + 17), str(index), "tick middle")
    canvas.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10), "layer", "axis middle")
    legend = float(_LEFT)
    for label, style, line in series:
        points = [(at, y(value)) for at, value in zip(x, line, strict=True)]
        canvas.polyline(points, f"curve {style}")
        for point, layer, value in zip(points, layers, line, strict=True):
            canvas.circle(point, 2.6, f"dot {style}", f"{layer.name}: {label} {value:.3%}")
        canvas.line((legend, 14), (legend + 22, 14), f"curve {style}")
        canvas.text((legend + 28, 18), label, "value start")
        legend += 60 + 7 * len(label)
    return canvas.render()


def _resource(package: str, name: str) -> str:
    return (importlib.resources.files(package) / name).read_text(encoding="utf-8")
