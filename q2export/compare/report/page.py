"""A report as one self-contained HTML page: inline style and SVG, no script, nothing to fetch.

A page is data: a verdict, and sections of paragraphs, facts, tables and figures. One template shows them all.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from q2export.errors import ParityError


@dataclass(frozen=True)
class Badge:
    """A short verdict in colour; plain text may follow it."""

    text: str
    style: Literal["good", "wrong", "tie"]
    after: str = ""


Cell = str | Badge


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    style: Literal["text", "number", "code", "muted"] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell names the row.

    Attributes:
        label: what screen readers say.
        columns: one per cell. rows: the cells.
        wrong: indices of rows shown in the colour of errors.
    """

    label: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    wrong: Collection[int] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing with a caption; ``values`` can be unfolded below it."""

    svg: str
    caption: str
    values: Table | None = None


@dataclass(frozen=True)
class Facts:
    """Names with values, side by side."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Samples:
    """Texts that can be unfolded: name, prompt, continuation."""

    title: str
    texts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    title: str
    line: str


Part = str | Facts | Table | Figure | Samples | Command


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; ``identifier`` is its anchor."""

    identifier: str
    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """Everything a page shows.

    Attributes:
        kind: ``parity`` or ``quality``.
        name: of what was measured. against: what it was compared with, after the words ``compared_with``.
        passed: the verdict; None where nothing was judged. praise: one sentence for what passed.
        failures, remarks: one sentence each.
        sections: in order.
    """

    kind: str
    name: str
    compared_with: str
    against: str
    passed: bool | None
    praise: str
    failures: Sequence[str]
    remarks: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def render(self) -> str:
        """The page as text."""
        import jinja2

        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.tests["badge"] = lambda cell: isinstance(cell, Badge)
        environment.filters["part"] = lambda part: type(part).__name__
        template = environment.from_string(_resource("page.html"))
        return template.render(page=self, style=_resource("page.css"))

    def write(self, path: Path) -> None:
        """Write the page through a temporary file beside it, so that it is whole or absent.

        Raises:
            ParityError: it cannot be written there.
        """
        temporary = _temporary(path)
        try:
            temporary.write_text(self.render(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise ParityError(f"{path}: the report cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a place where no page can be written, before the work that fills it.

    Raises:
        ParityError: its folder is missing or may not be written, or the path is a folder itself.
    """
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ParityError(
            f"{path}: the report cannot be written: {error.strerror}; name a file in a folder that exists"
        ) from error
    temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _resource(name: str) -> str:
    return (importlib.resources.files("q2export.compare.report") / name).read_text(encoding="utf-8")
