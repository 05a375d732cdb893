"""Token ids to text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class IncrementalDetokenizer:
    """Decodes tokens as they come; a character whose bytes are spread over tokens is never shown half.

    The texts returned, joined, equal the decoding of all tokens at once. It relies on the decoding of
    byte-level BPE: the text of two token lists joined is that of their bytes joined.

    Args:
        decode: token ids to text, with U+FFFD for bytes that are not UTF-8.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []  # tokens since the text last ended with a whole character
        self._shown = 0  # characters of the pending tokens' text already returned

    def feed(self, token_id: int) -> str:
        """The text that ``token_id`` completes."""
        self._pending.append(token_id)
        text = self._decode(self._pending)
        # UTF-8 bytes that may yet become a character decode to exactly one U+FFFD, at the end.
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}")
        certain = text[:-1] if incomplete else text
        new = certain[self._shown :]
        self._shown += len(new)
        if not incomplete:
            self._pending, self._shown = [], 0
        return new

    def flush(self) -> str:
        """The rest, at the end of the text: U+FFFD for an incomplete character, or nothing."""
        rest = self._decode(self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        return rest
