"""Guessing the tokens of a text from the text itself, for a sequence that runs alone.

Prompt lookup: what followed the last two or three tokens when they came before may follow again. One call
computes the guesses with the token they follow; each is kept only if it is the very token that is chosen from
the logits before it, so no text changes. Source: Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from q2export.runtime.scheduler.request import Request

_GRAMS = (3, 2)  # tokens that must have come before
_PAUSE = 32  # tokens generated plainly where guessing did not pay; twice as many the next time
_WEIGHT = 0.3  # of the latest call in the running mean


class Speculation:
    """The guesses for one sequence.

    Args:
        request: whose.
        most: tokens of one guess.
    """

    def __init__(self, request: Request, most: int) -> None:
        self.request = request
        self._most = most
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._pause = 0
        self._next_pause = _PAUSE
        self._gain = float(most)
        self._cost = 0.0

    def guess(self) -> list[int]:
        """Tokens that may come next; none while guessing does not pay, or if nothing like it came before."""
        self._read()
        if self._pause > 0:
            self._pause -= 1
            return []
        sequence = self.request.sequence
        most = min(self._most, sequence.max_new_tokens - len(sequence.token_ids) - 1)
        for gram in _GRAMS:
            place = self._places.get(tuple(self._tokens[-gram:]))
            if place is not None:
                return self._tokens[place : place + max(most, 0)]
        return []

    def judge(self, accepted: int, cost: float) -> None:
        """Learn from a call: pause, if the guesses took more than they gave.

        Args:
            accepted: tokens guessed right.
            cost: of the call, beyond a plain step and in such steps.
        """
        self._gain += _WEIGHT * (accepted - self._gain)
        self._cost += _WEIGHT * (cost - self._cost)
        if self._gain < self._cost:
            self._pause, self._gain, self._cost = self._next_pause, float(self._most), 0.0
            self._next_pause *= 2

    def _read(self) -> None:
        """Take up what was generated since, and where it stands."""
        for token in self._new_tokens():
            end = len(self._tokens)
            for gram in _GRAMS:
                if end >= gram:
                    self._places[tuple(self._tokens[end - gram :])] = end
            self._tokens.append(token)

    def _new_tokens(self) -> Sequence[int]:
        sequence = self.request.sequence
        if not self._tokens:
            return [int(token) for token in sequence.tokens()]
        return sequence.token_ids[len(self._tokens) - len(sequence.prompt) :]
