"""What a backend owes the generation loop: a KV cache and one forward step.

A backend runs a built engine. It knows token ids, lengths and logits; it knows nothing of text or sampling.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class KVCache(Protocol):
    """Device memory for the keys and values of ``batch`` sequences of at most ``capacity`` tokens each."""

    @property
    def batch(self) -> int:
        """Number of sequences (rows)."""

    @property
    def capacity(self) -> int:
        """Tokens each row can hold."""

    @property
    def token_bytes(self) -> int:
        """Memory of one token of one row, in all layers."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of row ``source`` over row ``target``.

        Generation keeps the sequences that still run in the first rows: when one ends, the last takes its
        place.
        """

    def release_row(self, row: int, length: int) -> None:
        """Give back the memory of the first ``length`` tokens of a row, where that can be done."""


CacheT = TypeVar("CacheT", bound=KVCache)
"""The kind of cache a backend makes, and the only kind it takes."""


class Backend(Protocol[CacheT]):
    """One loaded engine.

    A step works on ``rows`` rows of the cache that lie together, at most ``max_batch``; the others stay as
    they are. Sequences that have ended, or whose prompt is not yet due, thus cost nothing.

    Lengths are per row. ``past_lengths[b]`` tokens of row ``b`` are already in the cache; the step appends
    ``query_lengths[b]`` more, which are ``input_ids[b, :query_lengths[b]]`` (right-padded).
    """

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def max_batch(self) -> int:
        """Largest batch the engine was built for."""

    @property
    def max_capacity(self) -> int:
        """Largest number of tokens (prompt and generated) one row may hold."""

    @property
    def prefill_chunk(self) -> int:
        """Longest ``input_ids`` one call of :meth:`forward` should be given; longer prompts go in chunks."""

    def new_cache(self, batch: int, capacity: int) -> CacheT:
        """Allocate an empty cache.

        Raises:
            GenerationError: if ``batch`` or ``capacity`` exceeds what the engine was built for.
        """

    @property
    def arena_is_lazy(self) -> bool:
        """Whether :meth:`new_arena` takes memory as tokens are appended, not at once."""

    def new_arena(self, rows: int, capacity: int) -> CacheT:
        """Allocate a cache whose rows come and go.

        Raises:
            GenerationError: if ``capacity`` exceeds what the engine was built for, ``rows`` exceeds
                ``max_batch`` and the arena is not lazy, or there is no memory.
        """

    def forward(
        self,
        cache: CacheT,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
        first_row: int = 0,
    ) -> Float32Array:
        """Append the tokens to the cache, in place, and return logits at the asked positions.

        Args:
            cache: from :meth:`new_cache` or :meth:`new_arena`, of at least ``first_row + rows`` rows.
            input_ids: ``[rows, sequence]``, right-padded with any valid id.
            past_lengths: ``[rows]`` tokens already cached per row.
            query_lengths: ``[rows]`` valid tokens of ``input_ids`` per row, 1 to ``sequence``.
            logits_indices: ``[rows, n]`` positions within ``sequence`` whose logits are wanted (``n`` may be
                0);
                for a position in a row's padding they are unspecified.
            first_row: of the cache; all other arguments begin with it.

        Returns:
            float32 logits ``[rows, n, vocab_size]``, valid until the next call (the backend may reuse the
            memory).

        Raises:
            GenerationError: a row would hold more tokens than the cache's capacity; nothing is changed then.
        """
