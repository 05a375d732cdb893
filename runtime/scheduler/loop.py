"""The loop of a scheduler: which requests run, and what each step computes. It knows no threads."""

from __future__ import annotations

import bisect
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from q2export.errors import CancelledError, DeadlineError, GenerationError, Q2ExportError
from q2export.runtime.backends.base import Backend, Float32Array
from q2export.runtime.lifetime import Computing
from q2export.runtime.sampling import all_finite, check_finite
from q2export.runtime.scheduler.calls import prefill_call
from q2export.runtime.scheduler.pace import Pace, slots_together
from q2export.runtime.scheduler.request import Request
from q2export.runtime.scheduler.slots import Resident, Slots, common_prefix
from q2export.runtime.sequence import decode_step

_HEADROOM = 64  # tokens a sequence is sure to be able to generate when it is let in
_WORTH_WAITING = 32  # tokens another sequence must be about to compute for one to wait for them

_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What was done so far; see :class:`~q2export.runtime.scheduler.options.SchedulerStatistics`."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_prompt_tokens: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


class Loop:
    """Requests, the slots they run in, and the steps.

    Sequences that generate are in the first slots, so that a step over them is one call; those whose prompt
    is being computed are in any. Between two decode steps there is at most one call for prompts.

    Args:
        backend: the engine.
        cache: an arena of it.
        slots: over that arena.
        rows: sequences that run at once, fewer than there are slots or as many.
        kv_tokens: of all slots together.
        pace: sizes the calls for prompts.
        computing: the context of each call of the backend.
    """

    def __init__(
        self,
        backend: Backend[Any],
        cache: Any,
        slots: Slots,
        *,
        rows: int,
        kv_tokens: int,
        pace: Pace,
        computing: Computing,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self.slots = slots
        self._rows = rows
        self._kv_tokens = kv_tokens
        self._pace = pace
        self._computing = computing
        self.waiting: list[Request] = []
        self._prefilling: list[Resident] = []
        self._decoding: list[Resident] = []  # each in the slot of its place
        self._prompts_are_due = True
        self._oldest_is_due = True
        self.counts = Counts()

    @property
    def running(self) -> int:
        """Requests in slots."""
        return len(self._prefilling) + len(self._decoding)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        bisect.insort(self.waiting, request, key=lambda each: each.rank)

    def step(self) -> None:
        """End what is to end, begin what can begin, and make one call of the engine, if there is any to make.

        Raises:
            Q2ExportError: the engine failed; nothing may be done but :meth:`fail`.
        """
        self._reap()
        self._admit()
        if self._prefilling and (self._prompts_are_due or not self._decoding):
            self._prefill()
            self._prompts_are_due = False
        elif self._decoding:
            self._decode()
            self._prompts_are_due = True

    def fail(self, error: Q2ExportError) -> None:
        """End all requests with an error, and forget every prefix: nobody knows what the slots hold."""
        requests = [each.running for each in (*self._decoding, *self._prefilling)]
        requests += self.waiting
        self._decoding, self._prefilling, self.waiting = [], [], []
        self.slots.clear()
        for request in requests:
            self._end(request, error)

    # Who runs.

    def _reap(self) -> None:
        """End what was cancelled or is late."""
        now = time.monotonic()
        for request in [each for each in self.waiting if _ends(each, now)]:
            self.waiting.remove(request)
            self._end(request, _reason(request))
        for resident in [each for each in (*self._decoding, *self._prefilling) if _ends(each.running, now)]:
            self._leave(resident, _reason(resident.running))

    def _admit(self) -> None:
        """Let requests in, in order, as long as there are rows and memory."""
        for request in list(self.waiting):
            while not self._fits(request):
                if not self._make_way(request):
                    return
            if not self._waits_for_prefix(request):
                self.waiting.remove(request)
                self._begin(request)

    def _fits(self, request: Request) -> bool:
        if not self.running:
            return True
        promised = sum(_promised(each.running) for each in (*self._decoding, *self._prefilling))
        return self.running < self._rows and promised + _promised(request) <= self._kv_tokens

    def _make_way(self, request: Request) -> bool:
        """Put off a sequence of lower priority, if there is one."""
        last = self._last()
        if last.running.priority >= request.priority:
            return False
        self._put_off(last)
        return True

    def _waits_for_prefix(self, request: Request) -> bool:
        """Whether a prompt that is being computed begins as this one does: it will be there to be taken."""
        tokens = request.text_tokens[:-1]
        sources = [each.running.text_tokens for each in self._prefilling]
        coming = max((common_prefix(each, tokens) for each in sources), default=0)
        return coming >= _WORTH_WAITING and coming - self.slots.longest_prefix(tokens)[1] >= _WORTH_WAITING

    def _begin(self, request: Request) -> None:
        resident = self.slots.settle(request, len(self._decoding))
        self._prefilling.append(resident)
        self.counts.prefix_hits += resident.cached > 0
        self.counts.cached_prompt_tokens += resident.cached
        if request.begun is None:
            request.begun, request.cached_prompt_tokens = time.perf_counter(), resident.cached

    def _join(self, resident: Resident) -> None:
        """Its prompt is computed: it goes to the slot behind those that generate."""
        self._prefilling.remove(resident)
        slot = len(self._decoding)
        before = self.slots[slot]
        if before is not None and before is not resident and not self.slots.move_away(before):
            if before.request is None:
                self.slots.drop(before)
            else:
                self._put_off(before)
        if resident.slot != slot:
            self.slots.move(resident, slot)
        self._decoding.append(resident)

    def _put_off(self, resident: Resident) -> None:
        """Take a sequence from its slot; it waits, and what it loses is computed again."""
        request = resident.running
        self._vacate(resident, keep=True)
        request.text_tokens = request.sequence.tokens()
        self.counts.preemptions += 1
        self.add(request)

    def _leave(self, resident: Resident, error: Q2ExportError | None, *, keep: bool = True) -> None:
        request = resident.running
        self._vacate(resident, keep)
        self._end(request, error)

    def _vacate(self, resident: Resident, keep: bool) -> None:
        """Take a sequence from those that run; what it leaves stays as a prefix, if it may."""
        kept, slot = keep and self.slots.keep(resident), resident.slot
        last = resident
        if resident in self._prefilling:
            self._prefilling.remove(resident)
        else:
            last = self._decoding.pop()
        if not kept or (last is not resident and not self.slots.move_away(resident)):
            self.slots.drop(resident)
        if last is not resident:
            self.slots.move(last, slot)
            self._decoding[slot] = last

    def _last(self) -> Resident:
        """Of those that run, the one that goes first when some must go."""
        return max((*self._decoding, *self._prefilling), key=lambda each: each.running.rank)

    def _make_room(self, tokens: int) -> bool:
        """Make room in the KV cache; False if a sequence was put off instead: look again what to do."""
        if self.slots.make_room(tokens):
            return True
        self._put_off(self._last())
        return False

    # What a step computes.

    def _decode(self) -> None:
        while not self._make_room(len(self._decoding)):
            pass
        if not self._decoding:
            return
        begun = time.perf_counter()
        with self._computing():
            sequences = [each.running.sequence for each in self._decoding]
            logits = decode_step(self._backend, self._cache, sequences)
        self._pace.decoded(time.perf_counter() - begun)
        self.counts.steps += 1
        for each in self._decoding:
            each.cached += 1
        self._advance(self._decoding, logits)

    def _prefill(self) -> None:
        group, width = self._due()
        while not self._make_room(sum(min(each.remaining, width) for each in group)):
            if not self._prefilling:
                return
            group, width = self._due()
        begun = time.perf_counter()
        with self._computing():
            logits = prefill_call(self._backend, self._cache, group, width)
        self._pace.prefilled(len(group) * width, time.perf_counter() - begun)
        self.counts.steps += 1
        for each in group:
            count = min(each.remaining, width)
            each.cached += count
            self.counts.prompt_tokens += count
        done = [row for row, each in enumerate(group) if not each.remaining]
        for row in done:
            self._join(group[row])
        self._advance([group[row] for row in done], logits[done])

    def _due(self) -> tuple[list[Resident], int]:
        """Whose prompts the next call computes, and its width.

        Calls are for the oldest request and for the one with the least left to compute, in turn: a long
        prompt holds up short ones no longer than they hold up it.
        """
        self._oldest_is_due = not self._oldest_is_due
        oldest = min(self._prefilling, key=lambda each: each.running.rank)
        shortest = min(self._prefilling, key=lambda each: each.remaining)
        head = shortest if self._oldest_is_due else oldest
        remaining = {each.slot: each.remaining for each in self._prefilling}
        tokens = self._pace.tokens(decoding=bool(self._decoding))
        first, end, width = slots_together(remaining, head.slot, tokens, self._backend.max_batch)
        group = [each for each in self._prefilling if first <= each.slot < end]
        return sorted(group, key=lambda each: each.slot), width

    def _advance(self, residents: Sequence[Resident], logits: Float32Array) -> None:
        """Choose a token for each sequence, from ``logits [sequences, vocab]``; some end with it."""
        finite = all_finite(logits)
        left: list[tuple[Resident, Q2ExportError | None, bool]] = []
        for resident, row in zip(residents, logits, strict=True):
            request = resident.running
            try:
                if not finite:
                    check_finite(row[None], functools.partial(_after, request))
                event = request.advance(row)
            except GenerationError as error:
                left.append((resident, error, finite))
                continue
            self.counts.generated_tokens += 1
            try:
                request.generation.deliver(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends this request alone
                failure = GenerationError(f"on_event failed: {error!r}")
                failure.__cause__ = error
                left.append((resident, failure, True))
                continue
            if event.result is not None:
                left.append((resident, None, True))
        for resident, ended, keep in left:
            self._leave(resident, ended, keep=keep)

    def _end(self, request: Request, error: Q2ExportError | None) -> None:
        if error is None:
            self.counts.finished += 1
        elif isinstance(error, CancelledError):
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        try:
            request.generation.end(error)
        except Exception:  # noqa: BLE001 - there is nobody else to tell
            _log.exception("on_end of a request failed")


def _promised(request: Request) -> int:
    """Tokens of the KV cache that a request is let in for."""
    sequence = request.sequence
    left = sequence.max_new_tokens - len(sequence.token_ids)
    return sequence.length + min(left, _HEADROOM)


def _ends(request: Request, now: float) -> bool:
    return request.generation.cancelled or (request.deadline is not None and now >= request.deadline)


def _reason(request: Request) -> Q2ExportError:
    tokens = f"after {len(request.sequence.token_ids)} tokens"
    if request.generation.cancelled:
        return CancelledError(f"the generation was cancelled {tokens}")
    return DeadlineError(
        f"the deadline of the request has passed {tokens}; allow more time or ask for fewer tokens"
    )


def _after(request: Request, _row: int) -> str:
    return f"after token {request.sequence.length - 1}"
