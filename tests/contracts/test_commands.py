"""Commands that messages tell people to run."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from q2export.contracts.commands import command_line, install_command, shown_path

REQUIRES = [
    "numpy>=1.26",
    'torch>=2.9; extra == "export"',
    "onnx>=1.19 ; extra=='export'",
    'cuda; extra == "rtx"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """A distribution whose ``direct_url.json`` the test writes, behind what a build left in the tree."""
    files: dict[str, str | None] = {"direct_url.json": None}
    distribution = SimpleNamespace(read_text=files.get, requires=REQUIRES)
    left = SimpleNamespace(read_text={}.get, requires=REQUIRES)
    monkeypatch.setattr(metadata, "distributions", lambda name: [left, distribution])
    return files


def test_paths_are_seen_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a" / "b") == "a/b"
    assert shown_path(Path("a")) == "a"
    assert shown_path(tmp_path.parent / "c") == str(tmp_path.parent / "c")
    line = command_line("build", "--model", "two words", "--output", tmp_path / "my package")
    assert line == "q2export build --model 'two words' --output 'my package'"
    assert shlex.split(line)[-1] == "my package"


def test_an_extra_of_a_source_tree(
    installed: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my tree"
    folder.mkdir()
    url = folder.as_uri()
    installed["direct_url.json"] = json.dumps({"url": url, "dir_info": {"editable": True}})
    assert install_command("export") == f"pip install -e '{folder}[export]'"
    installed["direct_url.json"] = json.dumps({"url": url, "dir_info": {}})
    assert install_command("rtx") == f"pip install '{folder}[rtx]'"


def test_an_extra_of_what_came_from_elsewhere(installed: dict[str, str | None], tmp_path: Path) -> None:
    """Its name may be on no index; what the extra stands for is."""
    assert install_command("export") == "pip install 'onnx>=1.19' 'torch>=2.9'"
    gone = {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}
    installed["direct_url.json"] = json.dumps(gone)
    assert install_command("rtx") == "pip install cuda"
    installed["direct_url.json"] = json.dumps({"url": "file:///x.whl", "archive_info": {}})
    assert install_command("rtx") == "pip install cuda"


def test_a_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: [])
    assert shlex.split(install_command("export")) == ["pip", "install", f"{repository}[export]"]
