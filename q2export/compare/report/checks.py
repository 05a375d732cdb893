"""The summary of a report: a row per measure, with its limit and whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from q2export.compare.report.page import Badge, Cell, Column, Table

_MARKS = {True: "ok", False: "FAILS", None: ""}


@dataclass(frozen=True)
class Check:
    """What was measured, what is allowed, and whether it holds (None: not judged)."""

    name: str
    measured: str
    limit: str = ""
    holds: bool | None = None
    note: str = ""


def check_lines(checks: Iterable[Check]) -> list[str]:
    """The rows in aligned columns, for terminals."""
    rows = [(one.name, one.measured, one.limit, _MARKS[one.holds], one.note) for one in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"  {name:<{widths[0]}}  {measured:>{widths[1]}}  {limit:<{widths[2]}}  {mark:<5}  {note}".rstrip()
        for name, measured, limit, mark, note in rows
    ]


def check_table(checks: Iterable[Check]) -> Table:
    """The rows as the table of a page."""
    columns = (
        Column("Measure"),
        Column("Measured", "number"),
        Column("Limit", "number"),
        Column("Verdict"),
        Column("Remark", "muted"),
    )
    return Table(
        "Summary",
        columns,
        [(one.name, one.measured, one.limit, _verdict(one.holds), one.note) for one in checks],
    )


def _verdict(holds: bool | None) -> Cell:
    if holds is None:
        return ""
    return Badge("✓ ok", "good") if holds else Badge("✕ fails", "wrong")
