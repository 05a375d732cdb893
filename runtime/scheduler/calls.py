"""The arrays of one call of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from q2export.runtime.backends.base import Backend, Float32Array
from q2export.runtime.scheduler.slots import Resident


def prefill_call(backend: Backend[Any], cache: Any, group: Sequence[Resident], width: int) -> Float32Array:
    """Compute up to ``width`` more tokens of each prompt.

    Args:
        backend: the engine.
        cache: its arena.
        group: whose prompts; in slots that lie together, in their order.
        width: of the call, in tokens.

    Returns:
        logits ``[group, vocab]`` after the last token computed; zeros if no prompt ends here.
    """
    past = np.array([each.cached for each in group], np.int64)
    query = np.array([min(each.remaining, width) for each in group], np.int64)
    input_ids = np.zeros((len(group), int(query.max())), np.int64)
    for row, each in enumerate(group):
        input_ids[row, : query[row]] = each.running.text_tokens[past[row] : past[row] + query[row]]
    ends = any(each.remaining <= width for each in group)
    indices = (query - 1)[:, None] if ends else np.empty((len(group), 0), np.int64)
    logits = backend.forward(cache, input_ids, past, query, indices, first_row=group[0].slot)
    return logits[:, 0] if ends else np.zeros((len(group), backend.vocab_size), np.float32)


def verify_call(backend: Backend[Any], cache: Any, resident: Resident, guess: Sequence[int]) -> Float32Array:
    """Compute the last token of a text with tokens that may follow it.

    Returns:
        logits after each of them, ``[1 + guess, vocab]``.
    """
    tokens = np.array([[resident.running.sequence.token_ids[-1], *guess]], np.int64)
    past, query = np.array([resident.cached], np.int64), np.array([tokens.size], np.int64)
    indices = np.arange(tokens.size, dtype=np.int64)[None]
    logits: Float32Array = backend.forward(cache, tokens, past, query, indices, first_row=resident.slot)[0]
    return logits
