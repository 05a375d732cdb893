"""Naming the nearest valid key in an error about an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_COMPARED_CHARACTERS = 200


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``valid``, or the list of all valid keys."""
    choices = sorted(valid)
    short = len(key) <= _COMPARED_CHARACTERS  # a key of a megabyte takes seconds to compare
    close = difflib.get_close_matches(key, choices, n=1, cutoff=0.6) if short else []
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(choices)}"
