"""The rows of the arena: who is in which, how many tokens they hold, and what prefixes can be taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from q2export.runtime.backends.base import Int64Array, KVCache
from q2export.runtime.scheduler.arena import Arena
from q2export.runtime.scheduler.request import Request

_COPY_TOKENS = 16  # what a copy of a prefix costs, in tokens that are computed instead


@dataclass(eq=False)
class Resident:
    """What one slot holds: a sequence that runs, or the prefix that one has left.

    Attributes:
        slot: row of the arena.
        cached: tokens whose keys and values are there.
        request: who runs in it; None of a prefix.
        prefix: ``[cached]`` tokens of a prefix.
        last_used: the larger, the later.
    """

    slot: int
    cached: int = 0
    request: Request | None = None
    prefix: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))
    last_used: int = 0

    @property
    def running(self) -> Request:
        """The request that runs in it."""
        assert self.request is not None
        return self.request

    @property
    def remaining(self) -> int:
        """Tokens that its prefill still has to compute."""
        return len(self.running.text_tokens) - self.cached

    @property
    def tokens(self) -> Int64Array:
        """``[cached]`` tokens that are there."""
        if self.request is None:
            return self.prefix
        return self.request.sequence.tokens()[: self.cached]


class Slots:
    """The rows of an arena.

    Args:
        arena: see :class:`~q2export.runtime.scheduler.arena.Arena`.
    """

    def __init__(self, arena: Arena) -> None:
        self._cache: KVCache = arena.cache
        self._kv_tokens = arena.kv_tokens
        self._prefix_tokens = arena.prefix_tokens
        self._residents: list[Resident | None] = [None] * self._cache.batch
        self._clock = 0

    def __getitem__(self, slot: int) -> Resident | None:
        return self._residents[slot]

    @property
    def used(self) -> int:
        """Tokens of sequences that run."""
        return sum(each.cached for each in self._all() if each.request is not None)

    @property
    def retained(self) -> int:
        """Tokens of prefixes."""
        return sum(each.cached for each in self._prefixes())

    def make_room(self, tokens: int, spared: Resident | None = None) -> bool:
        """Drop prefixes, those unused for longest first, until there is room; whether there is.

        Args:
            tokens: that will be appended.
            spared: a prefix that must stay.
        """
        while sum(each.cached for each in self._all()) + tokens > self._kv_tokens:
            oldest = self._oldest_prefix(spared)
            if oldest is None:
                return False
            self.drop(oldest)
        return True

    def settle(self, request: Request, first: int) -> Resident:
        """Give a request a slot, with the longest prefix of its tokens that any slot holds.

        The last of its tokens is always left to compute: its logits are wanted. A prefix that ends with what
        is taken is continued where it lies or moved, others are copied.

        Args:
            request: not in a slot.
            first: the slot to take, or the next one that is free.
        """
        source, length = self.longest_prefix(request.text_tokens[:-1])
        if source is not None and source.request is None and source.cached - length <= _COPY_TOKENS:
            return self._continued(source, length, request, first)
        slot = self._free_slot(range(first, len(self._residents)), spared=source)
        if source is not None and (slot is None or not self.make_room(length, spared=source)):
            if source.request is None:
                return self._continued(source, length, request, first)
            source = None
        assert slot is not None, "there are as many slots as sequences that may run"
        resident = Resident(slot, request=request)
        self._residents[slot] = resident
        if source is not None:
            self._use(source)
            self._cache.copy_row(source.slot, slot, length)
            resident.cached = length
        return resident

    def longest_prefix(
        self, tokens: Int64Array, without: Collection[Resident] = ()
    ) -> tuple[Resident | None, int]:
        """Who holds the longest prefix of ``tokens``, and how long it is; None if a copy does not pay."""
        best, length = None, _COPY_TOKENS - 1
        for each in self._all():
            if min(each.cached, len(tokens)) > length and each not in without:
                common = common_prefix(each.tokens, tokens)
                if common > length:
                    best, length = each, common
        return best, (0 if best is None else length)

    def move(self, resident: Resident, slot: int) -> None:
        """Move what a slot holds to one that is free."""
        assert self._residents[slot] is None
        self._cache.copy_row(resident.slot, slot, resident.cached)
        self._vacate(resident)
        resident.slot = slot
        self._residents[slot] = resident

    def move_away(self, resident: Resident) -> bool:
        """Move it to a slot far behind, for which the oldest prefix may have to go; whether there was one."""
        slot = self._free_slot(reversed(range(len(self._residents))), spared=resident)
        if slot is None:
            return False
        self.move(resident, slot)
        return True

    def keep(self, resident: Resident) -> bool:
        """Let what a sequence leaves stay as a prefix; False if it may not, and must be dropped."""
        tokens = resident.tokens
        if len(tokens) < _COPY_TOKENS or len(tokens) > self._prefix_tokens:
            return False
        for each in list(self._prefixes()):
            common = common_prefix(each.prefix, tokens)
            if common == len(tokens):
                self._use(each)
                return False
            if common == each.cached:
                self.drop(each)
        while self.retained + len(tokens) > self._prefix_tokens:
            oldest = self._oldest_prefix(None)
            assert oldest is not None
            self.drop(oldest)
        resident.request, resident.prefix = None, tokens
        self._use(resident)
        return True

    def drop(self, resident: Resident) -> None:
        """Forget what a slot holds, and give its memory back."""
        self._vacate(resident)
        resident.cached = 0

    def free(self) -> None:
        """Let go of the arena."""
        del self._cache

    def clear(self) -> None:
        """Forget everything."""
        for each in list(self._all()):
            self.drop(each)

    def _continued(self, prefix: Resident, length: int, request: Request, first: int) -> Resident:
        """Let a request go on from a prefix, in the slot it wants: beside others that are computed."""
        prefix.request, prefix.cached, prefix.prefix = request, length, np.empty(0, np.int64)
        while self._residents[first] not in (None, prefix) and first + 1 < len(self._residents):
            first += 1
        if self._residents[first] is None:
            self.move(prefix, first)
        return prefix

    def _vacate(self, resident: Resident) -> None:
        self._residents[resident.slot] = None
        self._cache.release_row(resident.slot, resident.cached)

    def _free_slot(self, order: Iterator[int] | range, spared: Resident | None) -> int | None:
        """The first free slot in this order, any other free one, or that of the oldest prefix."""
        free = next((slot for slot in order if self._residents[slot] is None), None)
        if free is None:
            free = next((slot for slot, each in enumerate(self._residents) if each is None), None)
        if free is None:
            oldest = self._oldest_prefix(spared)
            if oldest is None:
                return None
            free = oldest.slot
            self.drop(oldest)
        return free

    def _all(self) -> Iterator[Resident]:
        return (each for each in self._residents if each is not None)

    def _prefixes(self) -> Iterator[Resident]:
        return (each for each in self._all() if each.request is None)

    def _oldest_prefix(self, spared: Resident | None) -> Resident | None:
        others = (each for each in self._prefixes() if each is not spared)
        return min(others, key=lambda each: each.last_used, default=None)

    def _use(self, resident: Resident) -> None:
        self._clock += 1
        resident.last_used = self._clock


def common_prefix(left: Int64Array, right: Int64Array) -> int:
    """Tokens that both begin with."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
