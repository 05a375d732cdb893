"""``verify``: JSON on stdout whatever the outcome, the summary on stderr, the outcome in the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from q2export.cli.main import main


@dataclass
class FakeReport:
    passed: bool

    def to_json(self) -> str:
        return f'{{"passed": {str(self.passed).lower()}}}'


@pytest.fixture
def verifies(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every call of ``api.verify``; the engine of the package ``wrong`` is wrong."""
    calls: list[dict[str, Any]] = []

    def verify(
        package: Path,
        model: str,
        *,
        revision: str | None,
        prompts: list[str] | None,
        text: Path | None,
        greedy_tokens: int,
        threads: int | None,
        report: Path | None,
    ) -> FakeReport:
        calls.append({name: value for name, value in locals().items() if name != "calls"})
        return FakeReport(package.name != "wrong")

    monkeypatch.setattr("q2export.api.verify", verify)
    monkeypatch.setattr(
        "q2export.compare.verify.summary.summary_lines",
        lambda report: ["PASS" if report.passed else "FAIL", "layer 3"],
    )
    return calls


def test_defaults(verifies: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "package", "--model", "m"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{"passed": true}\n', "PASS\nlayer 3\n")
    assert verifies == [
        {
            "package": Path("package"),
            "model": "m",
            "revision": None,
            "prompts": None,
            "text": None,
            "greedy_tokens": 64,
            "threads": None,
            "report": None,
        }
    ]


def test_a_wrong_engine_exits_with_1(
    verifies: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "wrong", "--model", "m"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{"passed": false}\n', "FAIL\nlayer 3\n")


def test_every_option_reaches_the_api(verifies: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--revision", "r", "--prompt", "a", "--prompt", "b", "--text", str(tmp_path / "text.txt")]
    others = ["--greedy-tokens", "0", "--threads", "1", "--report", "report.html"]
    assert main(["verify", "package", "--model", "m", *options, *others]) == 0
    assert verifies[0] | {"package": None, "model": None} == {
        "package": None,
        "model": None,
        "revision": "r",
        "prompts": ["a", "b"],
        "text": tmp_path / "text.txt",
        "greedy_tokens": 0,
        "threads": 1,
        "report": Path("report.html"),
    }
