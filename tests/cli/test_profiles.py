from __future__ import annotations

import json
from pathlib import Path

import pytest

from q2export.cli.main import main
from q2export.contracts.profile import Profile
from q2export.contracts.profile_loading import load_profile, profile_names


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["profiles", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in run(capsys).splitlines()]
    assert lines[0] == ["name", "target", "gpu", "dtype", "description"]
    assert [line[0] for line in lines[1:]] == profile_names()
    assert ["a100", "tensorrt", "A100", "auto"] in [line[:4] for line in lines]
    assert [profile["name"] for profile in json.loads(run(capsys, "--json"))] == profile_names()


def test_one_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in run(capsys, "cpu-int4").splitlines()]
    assert ["quantization.weights", "int4", "profile"] in lines and ["gpu", "null", "default"] in lines
    document = run(capsys, "cpu-int4", "--json")
    assert Profile.from_dict(json.loads(document)) == load_profile("cpu-int4")
    (tmp_path / "mine.yaml").write_text(document)
    assert json.loads(run(capsys, str(tmp_path / "mine.yaml"), "--json")) == json.loads(document)


def test_a_typo_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "cpu-int88"]) == 1
    assert capsys.readouterr().err == (
        "error: no packaged profile is called 'cpu-int88'; did you mean 'cpu-int8'? (a file of your own is "
        "given by its path, such as ./cpu-int88.yaml)\n"
    )
