"""What commands print: JSON for programs, aligned text for people, sizes and times in readable units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click


def print_json(document: object) -> None:
    """Write ``document`` to stdout as indented JSON; NaN and infinity are refused, for JSON has neither."""
    click.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def aligned(rows: Iterable[Sequence[object]], indent: int = 0, right: Sequence[int] = ()) -> str:
    """Rows as lines with their columns aligned; columns whose index is in ``right`` are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))
    ]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)
        ]
        lines.append((" " * indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def format_bytes(count: int) -> str:
    """``1536`` -> ``1.5 KiB``: binary units, one decimal."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """``0.0123`` -> ``12.3 ms``, ``4.2`` -> ``4.20 s``, ``75`` -> ``1 min 15 s``."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def warn(messages: Iterable[str]) -> None:
    """Print each message to stderr as ``warning: ...``."""
    for message in messages:
        click.echo(f"warning: {message}", err=True)
