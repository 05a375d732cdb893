"""Progress bars on stderr, silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

NOTICE = 25
"""Level of log records that are shown by default but warn of nothing, between INFO and WARNING."""

Advance = Callable[[int], object]
"""Told how much more was done: bytes, or items."""


def silent(amount: int) -> None:
    """An :data:`Advance` that shows nothing."""


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: Literal["B", "it"] = "B", show: bool | None = None
) -> Iterator[Advance]:
    """Show a bar on stderr while the block runs and yield the function that advances it.

    Args:
        description: what is being done, ``"converting weights"``.
        total: bytes or items to come; None if unknown.
        unit: ``"B"`` for bytes (scaled, 1024-based), ``"it"`` for items.
        show: True or False to decide; None shows the bar only if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield silent
        return
    from tqdm import tqdm  # type: ignore[import-untyped]  # imported here: 30 ms that --help need not pay

    with tqdm(
        desc=description, total=total, unit=unit, unit_scale=unit == "B", unit_divisor=1024, file=sys.stderr
    ) as bar:
        yield bar.update
