"""How many tokens of prompts one call computes. It changes how long things take, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from q2export.runtime.prefill import CALL_TOKENS

_FIRST_TOKENS = 64  # before anything was measured
_FEWEST_TOKENS = 16
_WEIGHT = 0.3  # of the latest measurement in the running mean


class Pace:
    """Sizes the calls that compute prompts so that tokens of running texts come often enough.

    Args:
        interval: seconds between two tokens of a text.
        chunk: most tokens of one call.
    """

    def __init__(self, interval: float, chunk: int) -> None:
        self._interval = interval
        self._chunk = chunk
        self._decode_seconds = 0.0
        self._token_seconds = 0.0

    def decoded(self, seconds: float) -> None:
        """A decode step took so long."""
        self._decode_seconds = _mean(self._decode_seconds, seconds)

    def steps(self, seconds: float) -> float:
        """So many seconds in decode steps; 1 before any was measured."""
        return seconds / self._decode_seconds if self._decode_seconds else 1.0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A call over so many tokens of prompts, padding included, took so long."""
        self._token_seconds = _mean(self._token_seconds, seconds / (tokens + CALL_TOKENS))

    def tokens(self, prefilling: int, decoding: int) -> int:
        """Most tokens of the next call, padding included.

        It may take what a decode step leaves of the interval, or as long as that step where that is more. Of
        many requests that come at once few should begin alone, since a step costs little more for all: where
        several prompts wait, more than a quarter of the texts, calls grow with their number.

        Args:
            prefilling: prompts that are being computed, at least one.
            decoding: texts that wait for the call.
        """
        if decoding == 0:
            return self._chunk
        if self._token_seconds == 0:
            return min(_FIRST_TOKENS, self._chunk)
        seconds = max(self._interval - self._decode_seconds, self._decode_seconds)
        if prefilling > 1:
            seconds *= max(1, 4 * prefilling / decoding)
        return max(1, min(max(int(seconds / self._token_seconds) - CALL_TOKENS, _FEWEST_TOKENS), self._chunk))


def _mean(before: float, now: float) -> float:
    return now if before == 0 else before + _WEIGHT * (now - before)


def slots_together(remaining: Mapping[int, int], head: int, tokens: int, most: int) -> tuple[int, int, int]:
    """The slots around ``head`` whose prompts one call takes up.

    Args:
        remaining: tokens left to compute, by slot.
        head: the slot that the call is for.
        tokens: most of the call, padding included.
        most: slots of one call.

    Returns:
        first slot, slot behind the last, and width of the call.
    """
    width = min(remaining[head], tokens)
    first, end, padding = head, head + 1, 0
    for step in (1, -1):
        slot = head + step
        while slot in remaining and end - first < most and (end - first + 1) * width <= tokens:
            padding += max(width - remaining[slot], 0)
            if padding > CALL_TOKENS:
                break
            first, end = min(first, slot), max(end, slot + 1)
            slot += step
    lengths = [remaining[slot] for slot in range(first, end)]
    widest = tokens // len(lengths)
    for wider in sorted({min(length, widest) for length in lengths if length > width}):
        if sum(max(wider - length, 0) for length in lengths) <= CALL_TOKENS:
            width = max(width, wider)
    return first, end, width
