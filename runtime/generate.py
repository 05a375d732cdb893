"""The generation loop: prefill, then one token per step for every sequence that still runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np

from q2export.runtime.backends.base import Backend, CacheT, Float32Array, Int64Array, KVCache
from q2export.runtime.detokenizer import IncrementalDetokenizer
from q2export.runtime.lifetime import Computing
from q2export.runtime.prefill import prefill
from q2export.runtime.results import FinishReason, GenerationResult, Timings, TokenEvent
from q2export.runtime.sampling import Sampler, check_finite
from q2export.runtime.stopping import StopStrings

_CAPACITY_STEP = 16  # tokens: few distinct cache shapes for at most 15 unused tokens per row


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
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.sampler = sampler
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._min_new_tokens = min_new_tokens
        self._stop_ids = stop_ids
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._stop_string: str | None = None
        self._text: list[str] = []

    @property
    def length(self) -> int:
        """Tokens of the prompt and generated so far."""
        return len(self.prompt) + len(self.token_ids)

    def accept(self, token_id: int) -> str:
        """Append a token, decide whether the sequence ends, and return the text that can now be shown."""
        self.token_ids.append(token_id)
        stopped = token_id in self._stop_ids
        full = len(self.token_ids) == self.max_new_tokens
        text = "" if stopped else self._new_text(token_id)
        if (stopped or full) and self._stop_strings.matched is None:
            text += self._last_text()
        if self._stop_strings.matched is not None:
            self.finish_reason, self._stop_string = "stop", self._stop_strings.matched
        elif stopped:
            self.finish_reason, self._stop_string = "stop", self._stop_ids[token_id]
        elif full:
            self.finish_reason = "length"
        self._text.append(text)
        return text

    def result(self, timings: Timings) -> GenerationResult:
        """The sequence, which must have ended."""
        assert self.finish_reason is not None
        return GenerationResult(
            token_ids=tuple(self.token_ids),
            decoded=None if self._detokenizer is None else "".join(self._text),
            finish_reason=self.finish_reason,
            stop_string=self._stop_string,
            timings=timings,
        )

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


def generate(
    backend: Backend[CacheT], sequences: Sequence[RunningSequence], computing: Computing = nullcontext
) -> Generator[tuple[RunningSequence, TokenEvent], None, None]:
    """Generate until every sequence has ended, yielding each token as it is chosen.

    Those that still run are kept in the first rows of the cache, so that the others cost nothing.

    Args:
        backend: the engine.
        sequences: at least one, none of them begun.
        computing: the context of each call of the backend.

    Raises:
        GenerationError: the batch is larger than the engine takes, or the engine returned NaN or infinity.
    """
    spent, resumed = 0.0, time.perf_counter()
    running = sorted(sequences, key=lambda sequence: len(sequence.prompt), reverse=True)
    cache = backend.new_cache(len(running), _capacity(backend, running))
    logits = prefill(backend, cache, [sequence.prompt for sequence in running], computing)
    prefill_seconds = time.perf_counter() - resumed
    first_token_seconds: float | None = None
    while running:
        check_finite(logits, functools.partial(_after, running))
        tokens = [sequence.sampler.choose(logits[row]) for row, sequence in enumerate(running)]
        texts = [sequence.accept(token) for sequence, token in zip(running, tokens, strict=True)]
        spent += time.perf_counter() - resumed
        first_token_seconds = spent if first_token_seconds is None else first_token_seconds
        for sequence, token, text in zip(running, tokens, texts, strict=True):
            result = None
            if sequence.finish_reason is not None:
                decode_seconds = spent - first_token_seconds
                sizes = len(sequence.prompt), len(sequence.token_ids)
                result = sequence.result(
                    Timings(*sizes, prefill_seconds, first_token_seconds, decode_seconds)
                )
            yield sequence, TokenEvent(token, text, result)
        resumed = time.perf_counter()
        running = _drop_ended(cache, running)
        if running:
            with computing():
                logits = _step(backend, cache, running)


def _after(running: Sequence[RunningSequence], row: int) -> str:
    return f"after token {running[row].length - 1} of prompt {running[row].index}"


def _capacity(backend: Backend[CacheT], sequences: Sequence[RunningSequence]) -> int:
    needed = max(len(sequence.prompt) + sequence.max_new_tokens for sequence in sequences)
    return min(-(-needed // _CAPACITY_STEP) * _CAPACITY_STEP, backend.max_capacity)


def _drop_ended(cache: KVCache, sequences: Sequence[RunningSequence]) -> list[RunningSequence]:
    """Sequences that still run; the last of them take the rows of those that have ended."""
    running = list(sequences)
    for row in reversed(range(len(running))):
        if running[row].finish_reason is not None:
            last = running.pop()  # runs still, unless it is the one of ``row`` itself
            if row < len(running):
                cache.move_row(len(running), row, last.length - 1)
                running[row] = last
    return running


def _step(backend: Backend[CacheT], cache: CacheT, running: Sequence[RunningSequence]) -> Float32Array:
    """Run the last token of each sequence: logits ``[sequences, vocab]``."""
    input_ids = np.array([[sequence.token_ids[-1]] for sequence in running], np.int64)
    past_lengths = np.array([sequence.length - 1 for sequence in running], np.int64)
    ones = np.ones(len(running), np.int64)
    logits_indices = np.zeros((len(running), 1), np.int64)
    return backend.forward(cache, input_ids, past_lengths, ones, logits_indices)[:, 0]
