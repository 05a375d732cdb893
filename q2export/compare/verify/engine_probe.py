"""An engine under test: its logits and its greedy tokens, through the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from q2export.compare.verify.activations import Activation
from q2export.runtime.backends.base import Backend, Float32Array
from q2export.runtime.prefill import prefill


class EngineProbe:
    """Any backend; it shows no intermediate tensors."""

    def __init__(self, backend: Callable[[], Backend[Any]]) -> None:
        """Remember how to open the engine; nothing is loaded yet.

        Args:
            backend: opens it, or returns one that is open.
        """
        self._backend = backend

    def score(self, tokens: Sequence[int]) -> Float32Array:
        """Logits after each token, float32 ``[tokens, vocab]``, in chunks through the KV cache."""
        backend = self._backend()
        cache = backend.new_cache(1, len(tokens))
        ids = np.asarray([tokens], dtype=np.int64)
        logits = np.empty((len(tokens), backend.vocab_size), dtype=np.float32)
        # At least two chunks, to cross a border.
        step = max(1, min(backend.prefill_chunk, -(-len(tokens) // 2)))
        for start in range(0, len(tokens), step):
            length = min(step, len(tokens) - start)
            wanted = np.arange(length, dtype=np.int64)[None]
            past, query = np.array([start], dtype=np.int64), np.array([length], dtype=np.int64)
            piece = ids[:, start : start + length]
            logits[start : start + length] = backend.forward(cache, piece, past, query, wanted)[0]
        return logits

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        """Exactly ``n`` greedy tokens after ``prompt``, one decode step each, past any end-of-text token."""
        backend = self._backend()
        cache = backend.new_cache(1, len(prompt) + n)
        token = int(prefill(backend, cache, [np.asarray(prompt, dtype=np.int64)])[0].argmax())
        tokens = [token]
        first, one = np.zeros((1, 1), dtype=np.int64), np.ones(1, dtype=np.int64)
        while len(tokens) < n:
            past = np.array([len(prompt) + len(tokens) - 1], dtype=np.int64)
            token = int(backend.forward(cache, first + token, past, one, first)[0, 0].argmax())
            tokens.append(token)
        return tokens

    def activations(self) -> list[Activation]:
        """What :meth:`capture` can show, in the order of computation: nothing."""
        return []

    def capture(self, tokens: Sequence[int], names: Collection[str]) -> dict[str, Float32Array]:
        """Run the engine with activations exposed: float32 ``[tokens, width]`` for each of ``names``."""
        return {}
