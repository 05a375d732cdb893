"""The page as text: self-contained, escaped, complete, and true to the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from q2export.compare.report.numbers import percent, scientific
from q2export.compare.report.svg import LogScale
from q2export.compare.verify.compare import compare
from q2export.compare.verify.figures import relative_error_figure
from q2export.compare.verify.page import parity_page
from q2export.compare.verify.results import ParityReport
from tests.compare.verify.samples import BROKEN, HEALTHY, SPOILT
from tests.compare.verify.tiny import INFO, PROMPTS, THRESHOLDS, TinyEngine, pair

SVG = "{http://www.w3.org/2000/svg}"


def figures(page: str) -> dict[str, ElementTree.Element]:
    drawings = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    return {element.get("id", ""): element for element in map(ElementTree.fromstring, drawings)}


@pytest.mark.parametrize("report", [HEALTHY, BROKEN, SPOILT], ids=["healthy", "broken", "spoilt"])
def test_the_page_is_self_contained(report: ParityReport) -> None:
    page = parity_page(report).render()
    page = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|https?://|javascript:", page)
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")


@pytest.mark.parametrize("report", [HEALTHY, BROKEN, SPOILT], ids=["healthy", "broken", "spoilt"])
def test_every_figure_is_well_formed_and_described(report: ParityReport) -> None:
    found = figures(parity_page(report).render())
    expected = {"relative-error", "absolute-error", "top1-agreement", "greedy"}
    assert set(found) == expected | ({"logit-histogram"} if report.total else set())
    for name, element in found.items():
        assert element.get("role") == "img"
        labels = {
            child.get("id"): child.text for child in element if child.tag in (f"{SVG}title", f"{SVG}desc")
        }
        assert element.get("aria-labelledby") == " ".join(k for k in labels if k) and all(labels.values()), (
            name
        )
        _, _, width, height = map(float, element.get("viewBox", "").split())
        for child in element.iter():
            for attribute, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert 0 <= float(child.get(attribute, 0)) <= limit, (name, child.tag, child.attrib)


def test_the_headline_and_the_origin_are_shown() -> None:
    passed, failed = parity_page(HEALTHY).render(), parity_page(BROKEN).render()
    assert "<title>PASS: parity of engine</title>" in passed and "Where it diverges" not in passed
    assert "<title>FAIL: parity of engine</title>" in failed
    assert "model.layers.1.self_attn.o_proj, in layer 1." in failed
    for failure in BROKEN.failures:
        assert failure.replace("'", "&#39;") in failed
    assert BROKEN.divergence is not None and BROKEN.divergence.activation.worst is not None
    assert f"{BROKEN.divergence.activation.worst.engine:.7g}" in failed
    assert INFO.command in failed and "numpy" in failed


def test_curves_have_a_point_per_stage_and_gaps_where_not_finite() -> None:
    def dots(report: ParityReport) -> int:
        svg = figures(parity_page(report).render())["relative-error"]
        return sum("dot max" in (child.get("class") or "") for child in svg.iter(f"{SVG}circle"))

    assert HEALTHY.curve is not None and SPOILT.curve is not None
    assert dots(HEALTHY) == len(HEALTHY.curve.stages) == 6
    assert dots(SPOILT) == 2  # embedding and layer 0; layer 1 is NaN
    crosses = [
        t.text for t in figures(parity_page(SPOILT).render())["relative-error"].iter(f"{SVG}text")
    ].count("✕")
    assert crosses == 4


def test_lines_do_not_bridge_a_gap() -> None:
    assert HEALTHY.curve is not None
    stages = list(HEALTHY.curve.stages)
    stages[2] = replace(stages[2], max_error=None)
    svg = ElementTree.fromstring(relative_error_figure(replace(HEALTHY.curve, stages=tuple(stages)), None))
    lines = [line for line in svg.iter(f"{SVG}polyline") if line.get("class") == "curve max"]
    assert [len(line.get("points", "").split()) for line in lines] == [2, 3]


def test_histogram_bars_beyond_the_limit_are_marked() -> None:
    def over(report: ParityReport) -> bool:
        svg = figures(parity_page(report).render())["logit-histogram"]
        return any(child.get("class") == "bar over" for child in svg.iter(f"{SVG}rect"))

    assert over(BROKEN) and not over(HEALTHY)


def test_text_of_tokens_is_escaped(tmp_path: Path) -> None:
    reference, healthy = pair(1)
    info = replace(
        INFO, engine="<b>engine</b>", command="q2export verify 'a & b'", environment={"<i>": "<u>"}
    )
    report = compare(
        reference,
        TinyEngine(healthy),
        PROMPTS,
        THRESHOLDS,
        info=info,
        n_greedy=2,
        decode=lambda _: "<script>",
    )
    parity_page(report).write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for forbidden in ("<script>", "<b>engine", "<i>", "<u>"):
        assert forbidden not in page
    assert "&lt;script&gt;" in page and "a &amp; b" in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_pages_without_curve_greedy_text_or_error_are_complete() -> None:
    reference, healthy = pair(1)
    hidden = {point.name for point in TinyEngine(healthy).activations()}
    opaque = compare(
        reference, TinyEngine(healthy, hidden=hidden), PROMPTS, THRESHOLDS, info=INFO, n_greedy=0
    )
    assert set(figures(parity_page(opaque).render())) == {"logit-histogram", "top1-agreement"}
    exact = compare(reference, TinyEngine(reference.model), [[4]], THRESHOLDS, info=INFO, n_greedy=1)
    assert exact.total is not None and exact.total.max_abs_error == 0
    assert "PASS" in parity_page(exact).render()
    zero = replace(exact, thresholds=replace(THRESHOLDS, max_abs_logit_error=0.0))
    assert "limit 0" not in parity_page(zero).render()


def test_numbers_are_formatted() -> None:
    assert [scientific(v) for v in (0, 3.21e-6, 1e-10, 0.0123, 12.34, 5432.1, 4e12, -2e-9)] == [
        "0", "3.2·10⁻⁶", "1.0·10⁻¹⁰", "0.0123", "12.3", "5,432", "4.0·10¹²", "-2.0·10⁻⁹",
    ]  # fmt: skip
    assert [percent(v) for v in (1.0, 0.5, 0.99999999, 0.98765, 0.0)] == [
        "100%",
        "50%",
        "99.9999%",
        "98.765%",
        "0%",
    ]


def test_log_scale_maps_decades_and_keeps_zero_apart() -> None:
    scale = LogScale.around([0.0, 3e-7, 2e-3], start=100, end=0, zero=120)
    assert (scale.first, scale.last) == (-7, -2)
    assert scale(1e-7) == pytest.approx(100) and scale(1e-2) == pytest.approx(0)
    assert scale(10**-4.5) == pytest.approx(50) and scale(0.0) == 120
    assert len(LogScale.around([1e-300, 1e300], 0, 1, 0).ticks()) <= 11
    assert LogScale.around([], 0, 1, 0).last > LogScale.around([], 0, 1, 0).first
