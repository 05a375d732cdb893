"""Checking what a caller wants continued, against what the engine can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.runtime.backends.base import Int64Array
from q2export.runtime.options import GenerationOptions

DEFAULT_MAX_NEW_TOKENS = 512
"""Used where neither the caller nor ``generation_config.json`` gives ``max_new_tokens``."""


def token_array(
    token_ids: Sequence[int] | npt.NDArray[np.integer[Any]], vocab_size: int, name: str
) -> Int64Array:
    """Token ids as ``[tokens]`` int64.

    Args:
        token_ids: at least one, each in [0, ``vocab_size``).
        vocab_size: of the engine.
        name: of the sequence, for messages.

    Raises:
        GenerationError: empty, not a flat list of integers, or an id outside the vocabulary.
    """
    try:
        tokens = np.asarray(token_ids)
    except ValueError:  # lists of different lengths inside
        tokens = np.empty((0, 0))
    if tokens.shape == (0,):
        raise GenerationError(f"{name} is empty: at least one token is needed to continue from")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise GenerationError(
            f"{name} must be a flat list of integer token ids; several prompts at once go to generate_batch"
        )
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        place = int(outside[0])
        raise GenerationError(
            f"{name}: token id {tokens[place]} at position {place} is outside the vocabulary "
            f"of the engine, 0 to {vocab_size - 1}"
        )
    return tokens.astype(np.int64)


def new_token_limit(
    options: GenerationOptions, asked: int | None, prompt_tokens: int, capacity: int, name: str
) -> int:
    """Most tokens to generate after a prompt: what the caller asks, or as much of the default as fits.

    Args:
        options: of the generation.
        asked: ``max_new_tokens``, if the caller gave it.
        prompt_tokens: length of the prompt.
        capacity: of the engine, in tokens.
        name: of the prompt, for messages.

    Raises:
        GenerationError: the prompt fills the engine, or the caller asks for more than fits.
    """
    room = capacity - prompt_tokens
    if room < 1:
        raise GenerationError(
            f"{name} has {prompt_tokens} tokens, the engine's capacity is {capacity} for prompt and new "
            f"tokens together; shorten it to at most {capacity - 1} tokens, or build an engine of larger "
            "capacity"
        )
    option = "max_new_tokens"
    if asked is None and options.min_new_tokens > room:
        asked, option = options.min_new_tokens, "min_new_tokens"
    if asked is None:
        default = options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return min(max(default, options.min_new_tokens), room)
    if asked > room:
        raise GenerationError(
            f"{name} has {prompt_tokens} tokens and {option} asks for {asked} more, together "
            f"{prompt_tokens + asked}; the engine's capacity is {capacity}. Ask for at most {room} new "
            "tokens, shorten the prompt, or build an engine of larger capacity"
        )
    return asked
