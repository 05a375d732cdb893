"""Long lists in error messages: the first few items, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

from q2export.strict.json import shown

_ITEMS_LISTED = 5


def listed(items: Sequence[str]) -> str:
    """The first few of ``items``, and how many more there are."""
    more = f" and {len(items) - _ITEMS_LISTED} more" if len(items) > _ITEMS_LISTED else ""
    return ", ".join(items[:_ITEMS_LISTED]) + more


def listed_names(names: Sequence[str]) -> str:
    """As :func:`listed`, for names from an untrusted file."""
    return listed([shown(name) for name in names])
