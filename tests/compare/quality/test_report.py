"""The quality report: figures by hand, limits, JSON, table and page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from q2export.compare.quality.logits import TextComparison
from q2export.compare.quality.page import layer_figure, quality_page
from q2export.compare.quality.results import (
    LayerQuality,
    QualityReport,
    TextQuality,
    WeightQuality,
)
from q2export.compare.quality.summary import quality_lines
from q2export.compare.quality.text import windows_of
from q2export.contracts.quantization import PackedQuantization, QualityThresholds
from q2export.errors import ParityError, ProfileError

LIMITS = QualityThresholds(max_perplexity_increase=0.05, max_mean_kl=0.02, min_top1_agreement=0.9)
TEXT = TextQuality("held_out.txt", 2, 500, 10.0, 10.3, 0.01, 0.4, 0.95)
REPORT = QualityReport(
    model="m",
    quantized="m <int4>",
    measured="engine",
    quantization=PackedQuantization(4, 32, True),
    thresholds=LIMITS,
    text=TEXT,
    layers=(LayerQuality("model.layers.0", 0.03, 0.02), LayerQuality("model.layers.1", 0.05, 0.04)),
    weights=(WeightQuality("a.weight", (4, 32), 0.07, 80), WeightQuality("b.weight", (8, 32), 0.09, 160)),
    reference_bytes=1000,
    quantized_bytes=300,
    command="q2export quantize --model m",
    environment={"torch": "2"},
)


def test_perplexity_and_divergence_of_two_windows_by_hand() -> None:
    """Two tokens of vocabulary: the reference is sure by odds 3 : 1, the quantized model by 1 : 1."""
    sure, unsure = np.log([[3.0, 1.0]], dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    comparison = TextComparison()
    comparison.add([0, 0, 0], np.repeat(sure, 3, axis=0), np.repeat(unsure, 3, axis=0))
    comparison.add([0, 1], np.repeat(sure, 2, axis=0), np.repeat(unsure, 2, axis=0))
    found = comparison.result("text")
    # Three predictions: p = 3/4, 3/4 and 1/4; the other model says 1/2 to each.
    assert found.reference_perplexity == pytest.approx((0.75 * 0.75 * 0.25) ** (-1 / 3))
    assert found.quantized_perplexity == pytest.approx(2.0)
    assert found.mean_kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert (found.windows, found.tokens, found.name) == (2, 5, "text")


def test_top1_agreement_counts_rows() -> None:
    comparison = TextComparison()
    reference = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], dtype=np.float32)
    quantized = np.array([[2, 0], [0, 1], [0, 3], [1, 0]], dtype=np.float32)
    comparison.add([0, 1, 0, 1], reference, quantized)
    assert comparison.result("text").top1_agreement == 0.75


def test_logits_that_are_not_finite_are_refused() -> None:
    rows = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ParityError, match="engine logits: nan at token 1, channel 2"):
        TextComparison().add([0, 1], rows, np.where(np.arange(6).reshape(2, 3) == 5, np.nan, rows))


@pytest.mark.parametrize(
    ("count", "at_most", "lengths"),
    [(10, 100, [4, 4, 2]), (9, 100, [4, 4]), (10, 8, [4, 4]), (2, 2, [2]), (100, 6, [4, 2])],
)
def test_windows(count: int, at_most: int, lengths: list[int]) -> None:
    found = windows_of(range(count), at_most, 4)
    assert [len(window) for window in found] == lengths
    assert [token for window in found for token in window] == list(range(sum(lengths)))


def test_a_text_too_short_is_refused() -> None:
    with pytest.raises(ParityError, match="the text has 1 tokens; perplexity needs at least 2"):
        windows_of([5], 10)
    with pytest.raises(ParityError, match="a window of 1 tokens"):
        windows_of([5, 6], 10, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quantized_perplexity": 10.51},
            "perplexity rises by +5.10%, from 10.0000 to 10.5100; at most +5.00%",
        ),
        ({"mean_kl": 0.021}, "mean KL divergence 0.021 nats exceeds 0.02"),
        ({"top1_agreement": 0.899}, "top-1 agreement 89.90% is below 90.00%"),
    ],
)
def test_each_limit_fails_on_its_own(change: dict[str, float], message: str) -> None:
    assert REPORT.passed
    worse = replace(REPORT, text=replace(TEXT, **change))
    (failure,) = worse.failures
    assert failure.startswith(message)
    assert quality_lines(worse)[-1] == f"failed: {failure}"
    assert "FAILS" in "\n".join(quality_lines(worse)) and "✕ fails" in quality_page(worse).render()
    assert replace(worse, thresholds=None).passed  # nothing to judge by


def test_an_increase_that_is_not_a_number_fails() -> None:
    assert len(replace(REPORT, text=replace(TEXT, quantized_perplexity=math.nan)).failures) == 1


def test_json_round_trip() -> None:
    again = QualityReport.from_json(REPORT.to_json())
    assert again == REPORT
    with pytest.raises(ParityError, match=r"quality\.json: expected schema_version 3, found 7"):
        QualityReport.from_json(
            REPORT.to_json().replace('"schema_version": 3', '"schema_version": 7'), "quality.json"
        )
    with pytest.raises(ParityError, match="not JSON"):
        QualityReport.from_json("{")
    document = json.loads(REPORT.to_json())
    with pytest.raises(ParityError, match="'passed' is False, but its figures give True"):
        QualityReport.from_json(json.dumps(document | {"passed": False}))
    document["text"]["mean_kl"] = 1.0
    with pytest.raises(ParityError, match="'passed' is True, but its figures give False"):
        QualityReport.from_json(json.dumps(document))


def test_the_table_names_the_worst() -> None:
    text = "\n".join(quality_lines(REPORT))
    assert text.startswith("PASS: m <int4> against m")
    assert "+3.00%" in text and "10.0000 to 10.3000" in text and "30.0%" in text
    assert "model.layers.1; 4.00% after all layers" in text
    assert text.index("b.weight") < text.index("a.weight")


def test_the_page_is_whole_and_escaped(tmp_path: Path) -> None:
    page = tmp_path / "quality.html"
    quality_page(REPORT).write(page)
    text = page.read_text(encoding="utf-8")
    assert "int4, blocks of 32, symmetric, round-to-nearest" in text
    assert "m &lt;int4&gt;" in text and "<int4>" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert [path.name for path in tmp_path.iterdir()] == ["quality.html"]
    figure = ElementTree.fromstring(layer_figure(REPORT.layers))
    assert len(figure.findall("{http://www.w3.org/2000/svg}circle")) == 4


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_limits_without_meaning_are_refused(value: float) -> None:
    with pytest.raises(ProfileError, match=r"quality\.max_mean_kl must be finite and not negative"):
        replace(LIMITS, max_mean_kl=value)
    with pytest.raises(ProfileError, match=r"quality\.min_top1_agreement must be from 0 to 1"):
        replace(LIMITS, min_top1_agreement=value)
