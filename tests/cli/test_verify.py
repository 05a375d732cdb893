"""``verify``: the verdict first, JSON on request, the outcome in the exit code, the page checked first."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from q2export.cli.main import main


@pytest.fixture
def arguments(qwen2_tiny_package: Path, checkpoints: Path) -> list[str]:
    model = str(checkpoints / "qwen2-tiny")
    return [
        "verify",
        str(qwen2_tiny_package),
        "--model",
        model,
        "--prompt",
        "A class",
        "--greedy-tokens",
        "2",
    ]


def test_text_begins_with_the_verdict_and_the_limits(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "PASS: qwen2-tiny against qwen2-tiny" and len(lines) < 20
    assert lines[1].split()[:4] == ["Max", "abs", "logit", "error"] and " ok " in lines[1]
    assert "{" not in printed.out


def test_json_is_all_that_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] and document["failures"] == []
    assert [one["prompt_text"] for one in document["sequences"]] == ["A class"]


def test_the_command_of_the_report_repeats_it(
    arguments: list[str],
    tmp_path: Path,
    checkpoints: Path,
    qwen2_tiny_package: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With relative paths, from the same folder, and whatever must be quoted."""
    (tmp_path / "my model").symlink_to(checkpoints / "qwen2-tiny")
    (tmp_path / "it's").symlink_to(qwen2_tiny_package)
    (tmp_path / "text.txt").write_text("for x in range(10): print(x)")
    monkeypatch.chdir(tmp_path)
    command = [
        "verify",
        "it's",
        "--model",
        "my model",
        "--prompt",
        'say "$HOME" & go\n',
        "--text",
        "text.txt",
    ]
    assert main([*command, "--greedy-tokens", "2", "--threads", "1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    words = shlex.split(first["info"]["command"])
    assert words[0] == "q2export"
    assert main([*words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize("place", ["absent/report.html", ".", "file/report.html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the package is even looked for."""
    (tmp_path / "file").touch()
    assert main(["verify", "absent", "--model", "absent", "--report", str(tmp_path / place)]) == 1
    printed = capsys.readouterr()
    assert "the report cannot be written" in printed.err and printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
