"""What ``q2export triton`` writes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import q2export
from q2export.cli.main import main
from q2export.errors import PackageError
from q2export.package.reader import read_package
from q2export.runtime.triton.settings import ModelSettings


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["triton", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def parameters(config: Path) -> dict[str, str]:
    line = re.compile(r'^parameters { key: ("\w+") value { string_value: (".*") } }$', re.MULTILINE)
    return {json.loads(key): json.loads(value) for key, value in line.findall(config.read_text())}


def test_what_is_written(
    qwen2_tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "new" / "repository"
    options = ["--name", "tiny.1", "--rows", 2, "--allow-special-tokens"]
    code, out, err = run(capsys, qwen2_tiny_package, "-o", repository, *options)
    assert (code, err) == (0, "") and out == f"wrote the model tiny.1 into {repository}\n"
    assert files(repository) == ["tiny.1/1/model.py", "tiny.1/config.pbtxt"]
    config = (repository / "tiny.1" / "config.pbtxt").read_text()
    assert 'name: "tiny.1"\nbackend: "python"\n' in config
    assert "model_transaction_policy { decoupled: true }" in config
    assert "kind: KIND_CPU" in config
    assert parameters(repository / "tiny.1" / "config.pbtxt") == {
        "package": str(qwen2_tiny_package.resolve()),
        "rows": "2",
        "max_queue": "256",
        "allow_special_tokens": "true",
    }
    compile((repository / "tiny.1" / "1" / "model.py").read_text(), "model.py", "exec")


def test_a_copy_is_whole_and_can_be_moved(
    qwen2_tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [qwen2_tiny_package, "-o", tmp_path / "a", "--name", "m", "--copy", "--json"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert json.loads(out) == {
        "folder": str(tmp_path / "a" / "m"),
        "name": "m",
        "package": str(tmp_path / "a" / "m" / "1" / "package"),
    }
    assert parameters(tmp_path / "a" / "m" / "config.pbtxt")["package"] == "package"
    (tmp_path / "a").rename(tmp_path / "b")
    copy = tmp_path / "b" / "m" / "1" / "package"
    assert read_package(copy, "full").manifest == read_package(qwen2_tiny_package).manifest
    assert files(copy) == files(qwen2_tiny_package)


def test_what_is_there_is_kept(
    qwen2_tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "config.pbtxt"
    other.parent.mkdir()
    other.write_text('name: "other"\n')
    arguments = [qwen2_tiny_package, "-o", tmp_path, "--name"]
    assert run(capsys, *arguments, "m", "--copy")[0] == 0
    code, _, err = run(capsys, *arguments, "m")
    assert code == 1 and "m exists already" in err
    compiled = tmp_path / "m" / "1" / "__pycache__" / "model.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"")  # as Triton leaves it
    assert run(capsys, *arguments, "m", "--overwrite")[0] == 0
    assert files(tmp_path) == ["m/1/model.py", "m/config.pbtxt", "other/config.pbtxt"]
    code, _, err = run(capsys, *arguments, "other", "--overwrite")
    assert code == 1 and "its config.pbtxt was not written by q2export; remove it yourself" in err
    (tmp_path / "m" / "notes").write_text("mine")
    code, _, err = run(capsys, *arguments, "m", "--overwrite")
    assert code == 1 and "it holds 'notes', not made by q2export" in err


def test_what_is_refused_leaves_nothing(
    qwen2_tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    assert run(capsys, qwen2_tiny_package, "-o", repository, "--name", "a/b")[0] == 1
    code, _, err = run(capsys, qwen2_tiny_package, "-o", repository, "--rows", 99)
    assert code == 1 and "must be 1 to 8, what the engine was built for, found 99" in err
    damaged = shutil.copytree(qwen2_tiny_package, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    code, _, err = run(capsys, damaged, "-o", repository, "--copy")
    assert code == 1 and "config.json" in err and "Traceback" not in err
    assert not repository.exists()


def test_a_graph_is_no_engine(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = q2export.export(checkpoints / "qwen2-tiny", tmp_path / "graph").package
    code, _, err = run(capsys, graph, "-o", tmp_path / "repository")
    assert code == 1 and "holds a graph for target 'portable', no engine" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"row": "1"}, "no parameter 'row'.*rows"),
        ({}, "'package' is missing"),
        ({"package": "p", "rows": "-1"}, "rows must be a whole number, found '-1'"),
        ({"package": "p", "allow_special_tokens": "yes"}, "must be true or false, found 'yes'"),
    ],
)
def test_a_configuration_that_was_edited(given: dict[str, str], message: str, tmp_path: Path) -> None:
    config = {"name": "m", "parameters": {key: {"string_value": text} for key, text in given.items()}}
    with pytest.raises(PackageError, match=f"config.pbtxt of m: .*{message}"):
        ModelSettings.of(config, tmp_path)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    settings = ModelSettings(tmp_path / "p", threads=0, rows=3, max_queue=0, allow_special_tokens=True)
    given = {key: {"string_value": text} for key, text in settings.parameters().items()}
    given["FORCE_CPU_ONLY_INPUT_TENSORS"] = {"string_value": "yes"}
    assert ModelSettings.of({"name": "m", "parameters": given}, Path("elsewhere")) == settings
