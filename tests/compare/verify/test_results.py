"""The report survives JSON, strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from q2export.compare.verify.results import ParityReport
from q2export.compare.verify.summary import summary_lines
from q2export.errors import ParityError
from tests.compare.verify.samples import BROKEN, HEALTHY, SPOILT


@pytest.mark.parametrize("report", [HEALTHY, BROKEN, SPOILT], ids=["healthy", "broken", "spoilt"])
def test_json_round_trip(report: ParityReport) -> None:
    text = report.to_json()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["passed"] is report.passed and document["schema_version"] == 2
    assert ParityReport.from_json(text) == report


def change(**values: Any) -> str:
    return json.dumps({**json.loads(BROKEN.to_json()), **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "parity.json: not JSON"),
        ("[]", "expected schema_version 2, found None"),
        (change(schema_version=1), "expected schema_version 2, found 1"),
        (change(passed=True), "'passed' is True, but its figures give False"),
        (change(passed="no"), "'passed' is 'no', but its figures give False"),
        (change(extra=1), "unknown key 'extra'"),
        (
            change(curve={"sequence": "prompt 0", "tokens": "many", "stages": []}),
            "curve.tokens must be an integer",
        ),
        (change(sequences=[{}]), "is missing"),
    ],
)
def test_damaged_reports_are_refused(text: str, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        ParityReport.from_json(text, "parity.json")


def test_the_terminal_summary_says_what_matters() -> None:
    lines = summary_lines(HEALTHY)
    assert lines[0] == "PASS: engine against model"
    assert not any("FAILS" in line or line.startswith("failed") for line in lines)
    assert any("Perplexity" in line for line in lines)
    broken = "\n".join(summary_lines(BROKEN))
    assert broken.startswith("FAIL: engine against model\n")
    assert BROKEN.divergence is not None and BROKEN.divergence.activation.worst is not None
    assert "first divergence: layer 1, model.layers.1.self_attn.o_proj (Gemm): relative error" in broken
    assert f"reference {BROKEN.divergence.activation.worst.reference:.7g}" in broken
    assert f"failed: {BROKEN.failures[0]}" in broken
    spoilt = "\n".join(summary_lines(SPOILT))
    assert "first divergence: layer 1, model.layers.1.mlp (Gemm)" in spoilt and "nan at [3, 0]" in spoilt
