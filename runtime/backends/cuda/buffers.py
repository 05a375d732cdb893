"""Where everything lies in memory: one arena for the KV cache, one block for a step's inputs. Pure.

Offsets and sizes are in bytes. Addresses of inputs and outputs are multiples of 256, as TensorRT wants them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from q2export.contracts.dtypes import BY_NAME
from q2export.contracts.step import BATCH, SEQUENCE, STEP_INPUTS, WANTED, CacheNames, cache_names
from q2export.package.manifest import EngineInfo

ALIGNMENT = 256
INT64_BYTES = BY_NAME["int64"].itemsize
LOGIT_BYTES = BY_NAME["float32"].itemsize


def aligned(size: int) -> int:
    """``size`` rounded up to a multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Binding:
    """One tensor of a call: where it lies, relative to its block or arena, and its shape."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RowCopy:
    """A strided copy within the arena: ``height`` pieces of ``width`` bytes, ``pitch`` bytes apart."""

    source: int
    target: int
    pitch: int
    width: int
    height: int


@dataclass(frozen=True)
class KVLayout:
    """The arena of a cache: ``[layers, 2, batch, heads, capacity, head_dim]``, each ``[batch, ...]`` aligned.

    The first rows of a layer are a prefix of its slab: a step over fewer rows binds the same addresses.
    """

    num_hidden_layers: int
    batch: int
    num_key_value_heads: int
    capacity: int
    head_dim: int
    itemsize: int

    @classmethod
    def of(cls, engine: EngineInfo, batch: int, capacity: int) -> KVLayout:
        """The arena of a cache of ``batch`` rows of ``capacity`` tokens."""
        heads, itemsize = engine.num_key_value_heads, BY_NAME[engine.kv_dtype].itemsize
        return cls(engine.num_hidden_layers, batch, heads, capacity, engine.head_dim, itemsize)

    @property
    def token_bytes(self) -> int:
        """One token of one row, in all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self._token_bytes

    @property
    def _token_bytes(self) -> int:
        return self.head_dim * self.itemsize

    @property
    def _row_bytes(self) -> int:
        return self.num_key_value_heads * self.capacity * self._token_bytes

    @property
    def slab_bytes(self) -> int:
        """From one layer's keys to its values, or to the next layer's keys."""
        return aligned(self.batch * self._row_bytes)

    @property
    def bytes(self) -> int:
        """Size of the arena."""
        return 2 * self.num_hidden_layers * self.slab_bytes

    def offset(self, names: CacheNames) -> int:
        """Where the slab of one layer's keys or values begins."""
        return (2 * names.layer + names.index) * self.slab_bytes

    def can_begin_at(self, row: int) -> bool:
        """Whether a step over rows from ``row`` on has aligned addresses."""
        return row * self._row_bytes % ALIGNMENT == 0

    def bindings(self, rows: int, first: int = 0) -> dict[str, Binding]:
        """Every ``past_*`` and ``present_*`` of a step over rows from ``first`` on, both in one place."""
        shape = (rows, self.num_key_value_heads, self.capacity, self.head_dim)
        found = {}
        for names in cache_names(self.num_hidden_layers):
            place = Binding(self.offset(names) + first * self._row_bytes, shape)
            found[names.past] = found[names.present] = place
        return found

    def row_copies(self, source: int, target: int, length: int) -> Iterator[RowCopy]:
        """Copies of the first ``length`` tokens of row ``source`` to row ``target``, one per slab."""
        for names in cache_names(self.num_hidden_layers):
            slab = self.offset(names)
            yield RowCopy(
                source=slab + source * self._row_bytes,
                target=slab + target * self._row_bytes,
                pitch=self.capacity * self._token_bytes,
                width=length * self._token_bytes,
                height=self.num_key_value_heads,
            )


@dataclass(frozen=True)
class InputLayout:
    """The inputs of a call in one block, so that one copy takes them to the GPU."""

    rows: int
    sequence: int
    logits: int

    def bindings(self) -> dict[str, Binding]:
        """Every input of the call that is not the cache, in the order of the block."""
        sizes: dict[str | int, int] = {BATCH: self.rows, SEQUENCE: self.sequence, WANTED: self.logits}
        found, offset = {}, 0
        for tensor in STEP_INPUTS:
            shape = tuple(sizes[size] for size in tensor.shape)
            found[tensor.name] = Binding(offset, shape)
            offset = aligned(offset + math.prod(shape) * INT64_BYTES)
        return found

    @property
    def bytes(self) -> int:
        """Size of the block."""
        last = self.bindings()[STEP_INPUTS[-1].name]
        return aligned(last.offset + math.prod(last.shape) * INT64_BYTES)


def logits_bytes(rows: int, logits: int, vocab_size: int) -> int:
    """Size of the float32 logits of a call, at least one byte so that there is an address to bind."""
    return aligned(max(1, rows * logits * vocab_size * LOGIT_BYTES))
