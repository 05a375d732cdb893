"""The KV cache that all requests share, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from q2export.errors import OptionError
from q2export.runtime.backends.base import Backend
from q2export.runtime.cpu import available_memory_bytes
from q2export.runtime.scheduler.options import SchedulerOptions

_SLOTS_PER_ROW = 4  # where slots cost nothing until they are used: the others hold prefixes


@dataclass(frozen=True)
class Arena:
    """A cache of the backend, and what may be in it.

    Attributes:
        cache: a row is a slot.
        rows: sequences that run at once, no more than there are slots.
        kv_tokens: most tokens in all slots.
        prefix_tokens: most of them of prefixes.
    """

    cache: Any
    rows: int
    kv_tokens: int
    prefix_tokens: int

    @property
    def request_tokens(self) -> int:
        """Most tokens of one request, prompt and generated."""
        return min(int(self.cache.capacity), self.kv_tokens)


def allocate_arena(backend: Backend[Any], options: SchedulerOptions) -> Arena:
    """An arena as the options ask for it, on a machine that may have less than the engine was built for.

    Raises:
        OptionError: the options ask for more than the engine was built for.
        GenerationError: there is too little memory.
    """
    rows = backend.max_batch if options.rows is None else options.rows
    capacity = backend.max_capacity if options.capacity is None else options.capacity
    limits = {"rows": (rows, backend.max_batch), "capacity": (capacity, backend.max_capacity)}
    for name, (asked, most) in limits.items():
        if asked > most:
            raise OptionError(name, f"must be at most {most}, what the engine was built for, found {asked}")
    lazy = backend.arena_is_lazy
    cache = backend.new_arena(rows * _SLOTS_PER_ROW if lazy else backend.max_batch, capacity)
    kv_tokens = cache.batch * capacity
    if options.kv_tokens is not None:
        kv_tokens = min(kv_tokens, options.kv_tokens)
    elif lazy:
        free = int(available_memory_bytes() * options.memory_share)
        kv_tokens = min(kv_tokens, max(free // cache.token_bytes, capacity))
    prefix_tokens = kv_tokens
    if options.prefix_bytes is not None:
        prefix_tokens = min(kv_tokens, options.prefix_bytes // cache.token_bytes)
    return Arena(cache, rows, kv_tokens, prefix_tokens)
