"""An engine small enough to know by heart, and a tokenizer made on the spot."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from q2export.errors import GenerationError
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.tokenizer import Tokenizer


def hashed_logits(prefix: Sequence[int], vocab_size: int) -> Float32Array:
    """The reference: logits that depend on every token of the prefix, and on their order."""
    seed = zlib.crc32(np.array(prefix, np.int64).tobytes())
    return np.random.default_rng(seed).standard_normal(vocab_size).astype(np.float32)


class FakeCache:
    """Keeps the tokens themselves; ``None`` marks a slot that holds nothing."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.slots: list[list[int | None]] = [[None] * capacity for _ in range(batch)]
        self.lengths = [0] * batch
        self.copied: list[tuple[int, int]] = []
        self.released: list[int] = []

    token_bytes = 8

    @property
    def batch(self) -> int:
        return len(self.slots)

    @property
    def capacity(self) -> int:
        return len(self.slots[0])

    def copy_row(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert self.lengths[source] >= length, "no more is copied than there is"
        self.slots[target] = [*self.slots[source][:length], *[None] * (self.capacity - length)]
        self.lengths[target] = length
        self.copied.append((source, target))

    def release_row(self, row: int, length: int) -> None:
        assert self.lengths[row] >= length
        self.slots[row] = [None] * self.capacity
        self.lengths[row] = 0
        self.released.append(row)


@dataclass
class FakeBackend:
    """Computes ``model(prefix, vocab_size)`` from what is in the cache; checks the contract at every call."""

    vocab_size: int = 64
    max_batch: int = 8
    max_capacity: int = 256
    prefill_chunk: int = 8
    lazy: bool = True
    model: Callable[[Sequence[int], int], Float32Array] = hashed_logits
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    """(rows, width, positions asked per row) of each call."""
    caches: list[FakeCache] = field(default_factory=list)

    def new_cache(self, batch: int, capacity: int) -> FakeCache:
        if not 1 <= batch <= self.max_batch or not 1 <= capacity <= self.max_capacity:
            raise GenerationError("cache out of range")
        self.caches.append(FakeCache(batch, capacity))
        return self.caches[-1]

    @property
    def arena_is_lazy(self) -> bool:
        return self.lazy

    def new_arena(self, rows: int, capacity: int) -> FakeCache:
        self.caches.append(FakeCache(rows, capacity))
        return self.caches[-1]

    def forward(
        self,
        cache: FakeCache,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
        first_row: int = 0,
    ) -> Float32Array:
        rows, width = input_ids.shape
        assert 1 <= rows <= self.max_batch
        assert 0 <= first_row <= cache.batch - rows
        assert 1 <= width <= self.prefill_chunk
        assert past_lengths.shape == query_lengths.shape == (rows,)
        assert logits_indices.shape[0] == rows
        for array in (input_ids, past_lengths, query_lengths, logits_indices):
            assert array.dtype == np.int64
        assert ((input_ids >= 0) & (input_ids < self.vocab_size)).all()
        assert query_lengths.max() == width, "no column may be padding in every row"
        self.calls.append((rows, width, logits_indices.shape[1]))
        logits = np.empty((*logits_indices.shape, self.vocab_size), np.float32)
        for row in range(rows):
            past, query = int(past_lengths[row]), int(query_lengths[row])
            slot = first_row + row
            assert past <= cache.lengths[slot], "past_lengths must be of what was appended before"
            assert 1 <= query <= width
            assert past + query <= cache.capacity
            cache.slots[slot][past : past + query] = input_ids[row, :query].tolist()
            cache.lengths[slot] = past + query
            for column, index in enumerate(logits_indices[row]):
                assert 0 <= index < query
                prefix = [token for token in cache.slots[slot][: past + index + 1] if token is not None]
                assert len(prefix) == past + index + 1
                logits[row, column] = self.model(prefix, self.vocab_size)
        return logits


def scripted(script: Sequence[int], prompt_length: int = 1) -> Callable[[Sequence[int], int], Float32Array]:
    """A model that continues any prompt of ``prompt_length`` tokens with ``script``, then with token 0."""

    def model(prefix: Sequence[int], vocab_size: int) -> Float32Array:
        logits = np.zeros(vocab_size, np.float32)
        place = len(prefix) - prompt_length
        logits[script[place] if place < len(script) else 0] = 9
        return logits

    return model


END, START = "<|end|>", "<|start|>"


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """A token per byte (in the order of their byte-level characters), merged tokens, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges)]
    core = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END, START])
    return Tokenizer(core, {"eos_token": END})


def byte_ids(data: bytes) -> list[int]:
    """Token ids in :func:`byte_tokenizer` of bytes that need not be UTF-8.

    GPT-2's byte-level alphabet: printable Latin-1 stands for itself, other bytes for U+0100 and on, in order.
    """
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    rank = {byte: place for place, byte in enumerate([*kept, *moved])}
    return [rank[byte] for byte in data]
