"""The parity report as one self-contained HTML page: inline style and SVG, no script, nothing to fetch."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterator
from pathlib import Path

import jinja2

from q2export.compare.verify import figures
from q2export.compare.verify.formatting import scientific
from q2export.compare.verify.judge import token_label
from q2export.compare.verify.results import ParityReport
from q2export.compare.verify.summary import summary_checks


def write_report(report: ParityReport, path: Path) -> None:
    """Write the page to ``path``; it is whole or absent.

    Raises:
        OSError: if the folder cannot be written.
    """
    write_page(render_report(report), path)


def write_page(page: str, path: Path) -> None:
    """Write a page through a temporary file beside it, so that it is whole or absent.

    Raises:
        OSError: if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def render_report(report: ParityReport) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["scientific"] = scientific
    environment.globals["token_label"] = token_label
    environment.globals["agreement_text"] = figures.agreement_text
    template = environment.from_string(_resource("report.html"))
    return template.render(
        report=report,
        style=_resource("report.css"),
        checks=list(summary_checks(report)),
        figures=dict(_figures(report)),
    )


def _figures(report: ParityReport) -> Iterator[tuple[str, str]]:
    if report.curve is not None:
        yield "relative_error", figures.relative_error_figure(report.curve, report.divergence)
        yield "absolute_error", figures.absolute_error_figure(report.curve, report.divergence)
    if report.total is not None:
        limit = report.thresholds.max_abs_logit_error
        yield "histogram", figures.histogram_figure(report.total.histogram, limit)
    yield "top1", figures.top1_figure(report.sequences, report.thresholds.min_top1_agreement)
    if any(s.greedy and s.greedy.generated for s in report.sequences):
        yield "greedy", figures.greedy_figure(report.sequences)


def _resource(name: str) -> str:
    return (importlib.resources.files("q2export.compare.verify") / name).read_text(encoding="utf-8")
