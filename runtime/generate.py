"""The generation loop: prefill, then one token per step for every sequence that still runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from q2export.runtime.backends.base import Backend, CacheT, KVCache
from q2export.runtime.lifetime import Computing
from q2export.runtime.prefill import prefill
from q2export.runtime.results import Timings, TokenEvent
from q2export.runtime.sampling import check_finite
from q2export.runtime.sequence import RunningSequence, decode_step

_CAPACITY_STEP = 16  # tokens: few distinct cache shapes for at most 15 unused tokens per row


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
        events = [sequence.advance(logits[row]) for row, sequence in enumerate(running)]
        spent += time.perf_counter() - resumed
        first_token_seconds = spent if first_token_seconds is None else first_token_seconds
        for sequence, event in zip(running, events, strict=True):
            if sequence.finish_reason is not None:
                decode_seconds = spent - first_token_seconds
                sizes = len(sequence.prompt), len(sequence.token_ids)
                timings = Timings(*sizes, prefill_seconds, first_token_seconds, decode_seconds)
                event = replace(event, result=sequence.result(timings))
            yield sequence, event
        resumed = time.perf_counter()
        running = _drop_ended(cache, running)
        if running:
            with computing():
                logits = decode_step(backend, cache, running)


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
                cache.copy_row(len(running), row, last.length - 1)
                running[row] = last
    return running
