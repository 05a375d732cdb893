"""Log probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from typing import Any

from q2export.runtime.results import TokenEvent, TokenLogprobs
from q2export.runtime.tokenizer import Tokenizer

Json = dict[str, Any]
_LEAST = -9999.0  # for a probability of 0, whose logarithm JSON has not


class ChatLogprobs:
    """Those of ``/v1/chat/completions``: an entry for each token.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def entries(self, event: TokenEvent) -> list[Json]:
        """The entry of a token, or none where it was not asked for."""
        if event.logprobs is None:
            return []
        top = [self._entry(token_id, logprob) for token_id, logprob in event.logprobs.top]
        return [{**self._entry(event.token_id, event.logprobs.logprob), "top_logprobs": top}]

    def _entry(self, token_id: int, logprob: float) -> Json:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}


class CompletionLogprobs:
    """Those of ``/v1/completions``: four lists of one item for each token.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def body(self, tokens: list[tuple[int, TokenLogprobs | None]]) -> Json:
        """The next tokens; None stands for the first one of a prompt, which nothing predicts."""
        names, offsets = [], []
        for token_id, _ in tokens:
            names.append(self._name(token_id))
            offsets.append(self._offset)
            self._offset += len(self._tokenizer.token_bytes(token_id).decode(errors="replace"))
        return {
            "tokens": names,
            "token_logprobs": [None if each is None else finite(each.logprob) for _, each in tokens],
            "top_logprobs": [None if each is None else self._top(token, each) for token, each in tokens],
            "text_offset": offsets,
        }

    def _top(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the chosen one if it is none of them, as OpenAI has it."""
        ids = dict([*logprobs.top, (token_id, logprobs.logprob)])
        return {self._name(token): finite(logprob) for token, logprob in ids.items()}

    def _name(self, token_id: int) -> str:
        """Its text; where it is no text of its own, its bytes: two tokens must not share a name."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode() or f"token_id:{token_id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """The logarithm, or a very small one of a probability of 0."""
    return max(logprob, _LEAST)
