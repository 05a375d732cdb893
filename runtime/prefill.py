"""Feeding prompts of different lengths to an engine in few calls with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from q2export.runtime.backends.base import Backend, CacheT, Float32Array, Int64Array
from q2export.runtime.lifetime import Computing

# What a call costs besides its tokens, in tokens: every call reads all weights. From a 0.5B model in fp32
# on 2 CPU threads: a one-token step takes 46 ms, a further prompt token 1.8 ms.
CALL_TOKENS = 25


class PrefillCall(NamedTuple):
    """One call over the first ``rows`` rows: their tokens from ``far`` before the end up to ``near``."""

    rows: int
    far: int
    near: int


def plan_prefill(lengths: Sequence[int], chunk: int) -> list[PrefillCall]:
    """Cut prompts into calls. All prompts end in the last call, the only one asked for logits.

    Short prompts join late: with lengths 2000 and 20 the last call is 20 wide, and those before it take the
    long prompt alone. From the end backwards, each call is as wide as it can be before its padding costs more
    than another call would.

    Args:
        lengths: tokens per prompt, longest first, each at least 1.
        chunk: widest call.
    """
    calls: list[PrefillCall] = []
    near = 0
    while near < lengths[0]:
        rows = sum(length > near for length in lengths)
        widest = min(near + chunk, lengths[0])
        far = min(lengths[rows - 1], widest)  # without padding
        for longer in sorted({widest, *(n for n in lengths[:rows] if far < n < widest)}):
            padding = sum(max(longer - n, 0) for n in lengths[:rows])
            if padding <= CALL_TOKENS:
                far = longer
        calls.append(PrefillCall(rows, far, near))
        near = far
    return calls[::-1]


def prefill(
    backend: Backend[CacheT],
    cache: CacheT,
    prompts: Sequence[Int64Array],
    computing: Computing = nullcontext,
) -> Float32Array:
    """Run prompts through the engine into an empty cache.

    Args:
        backend: the engine.
        cache: with a row for each prompt.
        prompts: token ids, longest prompt first, each of at least one token.
        computing: the context of each call of the backend.

    Returns:
        logits after the last token of each prompt: ``[prompts, vocab]``.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    logits = np.empty((0, 0, backend.vocab_size), np.float32)
    for rows, far, near in plan_prefill(lengths.tolist(), backend.prefill_chunk):
        past = np.maximum(lengths[:rows] - far, 0)
        query = lengths[:rows] - near - past
        input_ids = np.zeros((rows, int(query.max())), np.int64)
        for row in range(rows):
            input_ids[row, : query[row]] = prompts[row][past[row] : past[row] + query[row]]
        indices = (query - 1)[:, None] if near == 0 else np.empty((rows, 0), np.int64)
        with computing():
            logits = backend.forward(cache, input_ids, past, query, indices)
    return logits[:, 0]
