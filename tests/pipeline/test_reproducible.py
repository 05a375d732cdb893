"""Packages built twice are the same byte for byte, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

import q2export
from q2export.errors import PackageError
from tests.helpers.checkpoints import tiny_config, write_checkpoint


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_of_different_names_are_equal_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = repository / "tests/data/checkpoints/qwen2-tiny"
    first = q2export.build(model, tmp_path / "one", profile="cpu-int4")
    second = q2export.build(model, tmp_path / "elsewhere" / "another-name", profile="cpu-int4")
    assert first.manifest.created == "2023-11-14T22:13:20Z"
    assert {"manifest.json", "parity.json", "quality.json"} <= content(first.package).keys()
    assert content(first.package) == content(second.package)


def test_a_date_that_is_none_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_config())
    for wrong in ("yesterday", "-1", "1e9", "9" * 12):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(PackageError, match=rf"SOURCE_DATE_EPOCH: expected seconds since 1970, .*{wrong}"):
            q2export.export(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
