"""The command that makes a package again works from where its reader stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import q2export
from q2export.cli.main import main
from q2export.package.rebuild import rebuild_command


def test_a_damaged_package_is_rebuilt_by_the_command_it_names(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoints.parent)
    package = tmp_path / "my engine"
    overrides = {"capacity.max": 64, "threads": 1}
    q2export.build(checkpoints / "qwen2-tiny", package, overrides=overrides, parity=False)
    (package / "config.json").write_text("{}")
    monkeypatch.chdir(checkpoints)
    with pytest.raises(q2export.Q2ExportError, match="rebuild with: ") as caught:
        q2export.load(package)
    command = shlex.split(str(caught.value).partition("rebuild with: ")[2])
    assert command[:4] == ["q2export", "build", "--model", "qwen2-tiny"]
    assert main(command[1:]) == 0
    assert q2export.load(package).backend.max_capacity == 64


def test_an_exported_folder_is_exported_again(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoints)
    made = q2export.export(checkpoints / "qwen2-tiny", tmp_path / "out", target="tensorrt")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(q2export.Q2ExportError, match="rebuild with: ") as caught:
        q2export.load(tmp_path / "out")
    command = shlex.split(str(caught.value).partition("rebuild with: ")[2])
    assert command[:8] == ["q2export", "export", "--model", "qwen2-tiny", "--target", "tensorrt", "--dtype",
                           "bfloat16"]  # fmt: skip
    assert main(command[1:]) == 0
    assert made.manifest.files.keys() == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
    } - {"manifest.json"}


def test_what_is_not_found_is_shown_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = {"model": {"id": "llama"}, "profile": {"name": "mine"}}
    assert rebuild_command(manifest, tmp_path / "p") == (
        "q2export build --model path/to/llama --profile path/to/mine.yaml --output p --overwrite"
    )
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").touch()
    assert "--model llama --profile" in rebuild_command(manifest, tmp_path / "p")
    assert "--model Qwen/Q --profile" in rebuild_command({**manifest, "model": {"id": "Qwen/Q"}}, tmp_path)


def test_hostile_text_is_quoted_or_left_out() -> None:
    hostile = {
        "model": {"id": "$(rm -rf ~)/x", "revision": "a\x1b[2J"},
        "profile": [],
        "profile_overrides": {"a": "b c"},
    }
    assert rebuild_command(hostile, Path("a folder")) == (
        "q2export build --model '$(rm -rf ~)/x' --profile PROFILE --set 'a=b c' --output 'a folder' "
        "--overwrite"
    )


def test_text_too_long_for_a_message_is_left_out() -> None:
    manifest = {"model": {"id": "x" * 100_000}, "profile": {"name": "y" * 100_000}}
    assert rebuild_command(manifest, Path("p")) == (
        "q2export build --model MODEL --profile PROFILE --output p --overwrite"
    )
