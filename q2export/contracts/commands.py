"""Commands that messages tell people to run: quoted for a shell, and right from where they stand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOOL = "q2export"


def command_line(*words: str | Path) -> str:
    """A ``q2export`` command for a shell; paths are seen from the current folder (:func:`shown_path`)."""
    return shlex.join([TOOL, *(shown_path(word) if isinstance(word, Path) else word for word in words)])


def shown_path(path: Path) -> str:
    """``path`` relative to the current folder if it lies below it, else absolute."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def install_command(extra: str) -> str:
    """The ``pip install`` that adds an extra of this installation.

    q2export may be on no package index. Where its source is at hand that is installed with the extra, else
    the distributions the extra stands for are.
    """
    from importlib import metadata  # 20 ms that only a message pays

    found = list(metadata.distributions(name=TOOL))
    if not found:  # run from a source tree
        return f"pip install {shlex.quote(f'{_source_tree()}[{extra}]')}"
    # What is built in a source tree leaves metadata there that do not say where they are from.
    distribution = next((each for each in found if each.read_text("direct_url.json")), found[0])
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    folder = Path(unquote(urlsplit(origin.get("url", "")).path))
    if "dir_info" in origin and folder.is_dir():
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{folder}[{extra}]')}"
    wanted = (requirement.split(";") for requirement in distribution.requires or ())
    names = [parts[0].strip() for parts in wanted if len(parts) == 2 and _is_of(parts[1], extra)]
    return f"pip install {shlex.join(sorted(names, key=str.lower))}"


def _is_of(marker: str, extra: str) -> bool:
    """Whether the marker of a requirement, ``extra == "export"``, is that of an extra."""
    return "".join(marker.split()).replace("'", '"') == f'extra=="{extra}"'


def _source_tree() -> Path:
    """The folder of ``pyproject.toml``, of a tree that is not installed."""
    return Path(__file__).resolve().parents[2]
