"""Runs the commands and programs of the documentation; CONTRIBUTING.md says which blocks those are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.warm_commands import ask, write_shim

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


@dataclass(frozen=True)
class Step:
    """A command, or a Python program, and the line of the document its block begins at."""

    language: str
    text: str
    line: int


def steps(text: str) -> list[Step]:
    """What of a document is run, in order."""
    found = []
    for match in _FENCED.finditer(text):
        language, block = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if language == "console":
            found += [Step("console", command, line) for command in commands(block)]
        elif language == "python":
            found.append(Step("python", block, line))
    return found


def commands(block: str) -> list[str]:
    """Commands of a console block: what follows ``$ ``, with lines that end with a backslash continued."""
    joined = block.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def _text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_convention() -> None:
    text = (
        "a\n```console\n$ one \\\n  two\noutput\n$ three\n```\n```sh\n$ not run\n```\n```python\nx = 1\n```\n"
    )
    assert steps(text) == [
        Step("console", "one    two", 2),
        Step("console", "three", 2),
        Step("python", "x = 1\n", 11),
    ]


def test_every_fence_is_closed_and_named() -> None:
    for name in [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"]:
        text = _text(name)
        assert text.count("```") == 2 * len(_FENCED.findall(text)), name
        assert all(language for language, _ in _FENCED.findall(text)), name


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if steps(_text(name))])
def test_documented_commands_run(name: str, warm: Path, tmp_path: Path, checkpoints: Path) -> None:
    shutil.copytree(checkpoints, tmp_path / "tests" / "data" / "checkpoints")
    shutil.copytree(checkpoints.parent / "published", tmp_path / "tests" / "data" / "published")
    (tmp_path / "out").mkdir()
    for step in steps(_text(name)):
        code, output = _run(step, warm, tmp_path)
        assert code == 0, f"{name}:{step.line}: {step.text}\n{output}"


def test_a_failing_step_is_seen(warm: Path, tmp_path: Path) -> None:
    code, output = _run(Step("console", "q2export inspect nothing | cat", 1), warm, tmp_path)
    assert (code, "nothing" in output) == (1, True), output
    assert _run(Step("console", "q2export generate", 1), warm, tmp_path)[0] == 2
    code, output = _run(Step("python", "import q2export; q2export.load('nothing')", 1), warm, tmp_path)
    assert (code, "Traceback" in output and "nothing" in output) == (1, True)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the command ``q2export`` and the socket of the server that runs it."""
    folder = tmp_path_factory.mktemp("warm")
    write_shim(folder, folder / "socket")
    server = subprocess.Popen([sys.executable, "-m", "tests.helpers.warm_commands", folder / "socket"])
    try:
        while not (folder / "socket").exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield folder
    finally:
        server.kill()
        server.wait()


def _run(step: Step, warm: Path, folder: Path) -> tuple[int, str]:
    """Exit code, and what was printed."""
    path = os.pathsep.join([str(warm), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as output:
        if step.language == "python":
            streams = nothing.fileno(), output.fileno(), output.fileno()
            code = ask(
                str(warm / "socket"),
                ["python", step.text],
                folder=str(folder),
                environment=environment,
                streams=streams,
            )
        else:
            code = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", step.text],
                cwd=folder,
                env=environment,
                stdin=nothing,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        output.seek(0)
        return code, output.read()


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    folder = (REPOSITORY / name).parent
    for target in _LINK.findall(_text(name)):
        if "://" not in target:
            assert (folder / target).exists(), f"{name}: {target}"


def test_the_documentation_names_every_command_and_no_other() -> None:
    from q2export.cli.commands import COMMANDS

    text = _text("docs/command-line.md")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(COMMANDS)
