"""When a text ends: stop strings, found in decoded text wherever the token borders lie."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches a text that arrives in pieces for the first stop string.

    The result does not depend on how the text is cut into pieces: the stop string whose last character comes
    first wins, and of several that end there the longest one. Text that may be the start of a stop string is
    held back until that is decided.

    Args:
        stops: strings, none of them empty; may be none at all.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string found, once there is one."""

    def feed(self, piece: str) -> str:
        """Take the next piece; return the text that is now certain to come before any stop string."""
        text = self._held + piece
        # The held text holds no stop string, so only the new text can complete one.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The text still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins one of the stop strings."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
