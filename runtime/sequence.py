"""One sequence while it is generated: from the logits of each step to tokens, text and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from q2export.runtime.backends.base import Backend, CacheT, Float32Array, Int64Array
from q2export.runtime.detokenizer import IncrementalDetokenizer
from q2export.runtime.logprobs import token_logprobs
from q2export.runtime.results import FinishReason, GenerationResult, Timings, TokenEvent, TokenLogprobs
from q2export.runtime.sampling import Sampler
from q2export.runtime.stopping import StopStrings


class RunningSequence:
    """One sequence while it is generated.

    Args:
        index: its place in the caller's batch.
        prompt: ``[tokens]`` ids, at least one.
        sampler: chooses its tokens.
        max_new_tokens: at least 1.
        min_new_tokens: stop strings are looked for in the text from this token on.
        stop_ids: tokens that end it, each with the stop string it stands for, or None for an end-of-text
            token.
        detokenizer: None where there is no tokenizer, thus no text.
        stop_strings: watches the text.
        logprobs: how many of the likeliest tokens are returned with each; None returns no log probabilities.
    """

    def __init__(
        self,
        *,
        index: int,
        prompt: Int64Array,
        sampler: Sampler,
        max_new_tokens: int,
        min_new_tokens: int,
        stop_ids: Mapping[int, str | None],
        detokenizer: IncrementalDetokenizer | None,
        stop_strings: StopStrings,
        logprobs: int | None = None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampler = sampler
        self._min_new_tokens = min_new_tokens
        self._stop_ids = stop_ids
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._stop_string: str | None = None
        self._text: list[str] = []
        self._top = logprobs
        self._logprobs: list[TokenLogprobs] = []

    @property
    def length(self) -> int:
        """Tokens of the prompt and generated so far."""
        return len(self.prompt) + len(self.token_ids)

    def tokens(self) -> Int64Array:
        """The prompt and what was generated so far, ``[length]``."""
        return np.concatenate((self.prompt, np.array(self.token_ids, np.int64)))

    def advance(self, logits: Float32Array) -> TokenEvent:
        """Choose the next token and append it; the event has no result yet.

        Args:
            logits: ``[vocab]`` after the last token, finite.

        Raises:
            GenerationError: a logits processor fails, or forbids every token.
        """
        token_id = self._sampler.choose(logits)
        logprobs = None
        if self._top is not None:
            logprobs = token_logprobs(logits, token_id, self._top)
            self._logprobs.append(logprobs)
        return TokenEvent(token_id, self._accept(token_id), logprobs=logprobs)

    def result(self, timings: Timings) -> GenerationResult:
        """The sequence, which must have ended."""
        assert self.finish_reason is not None
        return GenerationResult(
            token_ids=tuple(self.token_ids),
            decoded=None if self._detokenizer is None else "".join(self._text),
            finish_reason=self.finish_reason,
            stop_string=self._stop_string,
            timings=timings,
            logprobs=None if self._top is None else tuple(self._logprobs),
        )

    def _accept(self, token_id: int) -> str:
        """Append a token, decide whether the sequence ends, and return the text that can now be shown."""
        self.token_ids.append(token_id)
        stopped = token_id in self._stop_ids
        full = len(self.token_ids) == self.max_new_tokens
        text = "" if stopped else self._new_text(token_id)
        ends = stopped or full or self._sampler.finished
        if ends and self._stop_strings.matched is None:
            text += self._last_text()
        if self._stop_strings.matched is not None:
            self.finish_reason, self._stop_string = "stop", self._stop_strings.matched
        elif stopped:
            self.finish_reason, self._stop_string = "stop", self._stop_ids[token_id]
        elif ends:
            self.finish_reason = "stop" if self._sampler.finished else "length"
        self._text.append(text)
        return text

    def _new_text(self, token_id: int) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.feed(token_id)
        return text if len(self.token_ids) < self._min_new_tokens else self._stop_strings.feed(text)

    def _last_text(self) -> str:
        """What was held back: half a character, or the start of a stop string that did not come."""
        if self._detokenizer is None:
            return ""
        return self._stop_strings.feed(self._detokenizer.flush()) + self._stop_strings.flush()


def decode_step(backend: Backend[CacheT], cache: CacheT, running: Sequence[RunningSequence]) -> Float32Array:
    """Run the last tokens of the sequences in the first rows of the cache: logits ``[sequences, vocab]``."""
    input_ids = np.array([[sequence.token_ids[-1]] for sequence in running], np.int64)
    past_lengths = np.array([sequence.length - 1 for sequence in running], np.int64)
    ones = np.ones(len(running), np.int64)
    logits_indices = np.zeros((len(running), 1), np.int64)
    return backend.forward(cache, input_ids, past_lengths, ones, logits_indices)[:, 0]
