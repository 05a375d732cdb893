"""Memory an engine needs: its weights, and the KV cache of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q2export.contracts.dtypes import BY_NAME

_CONTEXTS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class CacheShape:
    """What the size of a KV cache depends on besides batch and capacity; ``dtype`` is of its elements."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        elements = self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return 2 * elements * BY_NAME[self.dtype].itemsize


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of weights and KV cache for ``batch`` sequences of ``context`` tokens, prompt and generated."""

    batch: int
    context: int
    kv_cache_bytes: int
    total_bytes: int


def memory_table(
    cache: CacheShape, weight_bytes: int, *, max_batch: int, max_context: int
) -> tuple[MemoryNeed, ...]:
    """Memory for powers of two of the batch and a few contexts, up to the largest of both."""
    return tuple(
        MemoryNeed(batch, context, kv, weight_bytes + kv)
        for batch in _up_to(max_batch, [1 << n for n in range(max_batch.bit_length())])
        for context in _up_to(max_context, _CONTEXTS)
        for kv in [batch * context * cache.bytes_per_token]
    )


def _up_to(largest: int, steps: Sequence[int]) -> list[int]:
    return [step for step in steps if step < largest] + [largest]
