"""The loop of a scheduler: which requests run, and what each step computes. It knows no threads."""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Sequence
from typing import Any

from q2export.errors import CancelledError, GenerationError, Q2ExportError
from q2export.runtime.backends.base import Backend, Float32Array
from q2export.runtime.lifetime import Computing
from q2export.runtime.sampling import all_finite, check_finite
from q2export.runtime.scheduler.arena import Arena
from q2export.runtime.scheduler.calls import prefill_call, verify_call
from q2export.runtime.scheduler.lineup import Lineup
from q2export.runtime.scheduler.options import Counts
from q2export.runtime.scheduler.pace import Pace, slots_together
from q2export.runtime.scheduler.request import Request
from q2export.runtime.scheduler.slots import Resident, common_prefix
from q2export.runtime.scheduler.speculation import Speculation
from q2export.runtime.sequence import decode_step

_WORTH_WAITING = 32  # tokens another sequence must be about to compute for one to wait for them

_log = logging.getLogger(__name__)


class Loop:
    """Which requests run, and what is computed for them.

    Between two decode steps there is at most one call for prompts.

    Args:
        backend: the engine.
        arena: of it.
        pace: sizes the calls for prompts.
        computing: the context of each call of the backend.
        speculate: tokens guessed for a sequence that runs alone.
    """

    def __init__(
        self, backend: Backend[Any], arena: Arena, pace: Pace, computing: Computing, speculate: int = 0
    ) -> None:
        self._backend = backend
        self._arena = arena
        self._pace = pace
        self._computing = computing
        self.waiting: list[Request] = []
        self.lineup = Lineup(arena)
        self.counts = Counts()
        self._prompts_are_due = True
        self._oldest_is_due = True
        self._speculate = speculate
        self._speculation: Speculation | None = None

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
        if self.lineup.prefilling and (self._prompts_are_due or not self.lineup.decoding):
            self._prefill()
            self._prompts_are_due = False
        elif self.lineup.decoding:
            self._decode()
            self._prompts_are_due = True

    def fail(self, error: Q2ExportError) -> None:
        """End all requests with an error, and forget every prefix: nobody knows what the slots hold."""
        requests = [each.running for each in self.lineup] + self.waiting
        self.lineup.clear()
        self.waiting = []
        for request in requests:
            self._end(request, error)

    def free(self) -> None:
        """Let go of the engine and the arena; nothing can run any more."""
        del self._backend, self._arena, self._computing
        self.lineup.free()

    # Who runs.

    def _reap(self) -> None:
        """End what was cancelled or is late."""
        now = time.monotonic()
        for request in [each for each in self.waiting if each.ends(now)]:
            self.waiting.remove(request)
            self._end(request, request.reason())
        for resident in [each for each in self.lineup if each.running.ends(now)]:
            self._leave(resident, resident.running.reason())

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
        if len(self.lineup) == 0:
            return True
        promised = sum(each.running.promised_tokens for each in self.lineup)
        return (
            len(self.lineup) < self._arena.rows
            and promised + request.promised_tokens <= self._arena.kv_tokens
        )

    def _make_way(self, request: Request) -> bool:
        """Put off a sequence of lower priority, if there is one."""
        last = self.lineup.last
        if last.running.priority >= request.priority:
            return False
        self._put_off(last)
        return True

    def _waits_for_prefix(self, request: Request) -> bool:
        """Whether a prompt that is being computed begins as this one does: it will be there to be taken."""
        tokens, prefilling = request.text_tokens[:-1], self.lineup.prefilling
        coming = max((common_prefix(each.running.text_tokens, tokens) for each in prefilling), default=0)
        if coming < _WORTH_WAITING:
            return False
        _, there = self.lineup.slots.longest_prefix(tokens, without=prefilling)
        return coming - there >= _WORTH_WAITING

    def _begin(self, request: Request) -> None:
        cached = self.lineup.begin(request).cached
        self.counts.prefix_hits += cached > 0
        self.counts.cached_prompt_tokens += cached
        if request.begun is None:
            request.begun, request.cached_prompt_tokens = time.perf_counter(), cached

    def _put_off(self, resident: Resident) -> None:
        """Take a sequence from its slot; it waits, and what it loses is computed again."""
        request = resident.running
        self.lineup.leave(resident, keep=True)
        request.text_tokens = request.sequence.tokens()
        self.counts.preemptions += 1
        self.add(request)

    def _make_room(self, tokens: int) -> bool:
        """Make room in the KV cache; False if a sequence was put off instead: look again what to do."""
        if self.lineup.slots.make_room(tokens):
            return True
        self._put_off(self.lineup.last)
        return False

    def _leave(self, resident: Resident, error: Q2ExportError | None, *, keep: bool = True) -> None:
        request = resident.running
        self.lineup.leave(resident, keep)
        self._end(request, error)

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

    # What a step computes.

    def _decode(self) -> None:
        decoding = self.lineup.decoding
        while not self._make_room(len(decoding)):
            pass
        if not decoding:
            return
        guess = self._guess()
        if guess:
            self._verify(decoding[0], guess)
            return
        begun = time.perf_counter()
        with self._computing():
            sequences = [each.running.sequence for each in decoding]
            logits = decode_step(self._backend, self._arena.cache, sequences)
        self._pace.decoded(time.perf_counter() - begun)
        self.counts.steps += 1
        for each in decoding:
            each.cached += 1
        self._advance(list(decoding), logits)

    def _guess(self) -> list[int]:
        """Tokens that may come next, if one sequence runs alone."""
        if self._speculate == 0 or len(self.lineup) > 1:
            return []
        request = self.lineup.decoding[0].running
        if self._speculation is None or self._speculation.request is not request:
            self._speculation = Speculation(request, min(self._speculate, self._backend.prefill_chunk - 1))
        guess = self._speculation.guess()
        return guess if self.lineup.slots.make_room(1 + len(guess)) else []

    def _verify(self, resident: Resident, guess: Sequence[int]) -> None:
        """Compute the last token with what may follow; take the tokens that were guessed right, and one."""
        assert self._speculation is not None
        request, before = resident.running, len(resident.running.sequence.token_ids)
        begun = time.perf_counter()
        with self._computing():
            logits = verify_call(self._backend, self._arena.cache, resident, guess)
        seconds = time.perf_counter() - begun
        self.counts.steps += 1
        for row, expected in zip(logits, (*guess, -1), strict=True):
            resident.cached += 1
            self._advance([resident], row[None])
            if request.generation.done or request.sequence.token_ids[-1] != expected:
                break
        right = len(request.sequence.token_ids) - before - 1
        self._speculation.judge(right, self._pace.steps(seconds) - 1)

    def _prefill(self) -> None:
        group, width = self._due()
        while not self._make_room(sum(min(each.remaining, width) for each in group)):
            if not self.lineup.prefilling:
                return
            group, width = self._due()
        begun = time.perf_counter()
        with self._computing():
            logits = prefill_call(self._backend, self._arena.cache, group, width)
        self._pace.prefilled(len(group) * width, time.perf_counter() - begun)
        self.counts.steps += 1
        for each in group:
            count = min(each.remaining, width)
            each.cached += count
            self.counts.prompt_tokens += count
        done = [row for row, each in enumerate(group) if not each.remaining]
        self._advance([group[row] for row in done], logits[done])
        for row in done:
            self._join(group[row])

    def _due(self) -> tuple[list[Resident], int]:
        """Whose prompts the next call computes, and its width.

        Calls are for the oldest request and for the one with the least left to compute, in turn: a long
        prompt holds up short ones no longer than they hold up it.
        """
        self._oldest_is_due = not self._oldest_is_due
        prefilling = self.lineup.prefilling
        oldest = min(prefilling, key=lambda each: each.running.rank)
        shortest = min(prefilling, key=lambda each: each.remaining)
        head = oldest if self._oldest_is_due else shortest
        remaining = {each.slot: each.remaining for each in prefilling}
        tokens = self._pace.tokens(len(prefilling), len(self.lineup.decoding))
        first, end, width = slots_together(remaining, head.slot, tokens, self._backend.max_batch)
        group = [each for each in prefilling if first <= each.slot < end]
        return sorted(group, key=lambda each: each.slot), width

    def _join(self, resident: Resident) -> None:
        """Its prompt is computed, and its text goes on, unless it has ended or was put off."""
        if resident in self.lineup.prefilling:
            in_the_way = self.lineup.join(resident)
            if in_the_way is not None:
                self._put_off(in_the_way)
                self.lineup.join(resident)

    def _advance(self, residents: Sequence[Resident], logits: Float32Array) -> None:
        """Choose a token for each sequence, from ``logits [sequences, vocab]``; some end with it."""
        finite = all_finite(logits)
        for resident, row in zip(residents, logits, strict=True):
            try:
                if not finite:
                    check_finite(row[None], resident.running.place)
                ended = self._choose(resident.running, row)
            except GenerationError as error:
                self._leave(resident, error, keep=finite)
            else:
                if ended:
                    self._leave(resident, None)

    def _choose(self, request: Request, logits: Float32Array) -> bool:
        """Choose a token and hand it over; whether the text ends.

        Raises:
            GenerationError: of this request alone.
        """
        event = request.advance(logits)
        self.counts.generated_tokens += 1
        try:
            request.generation.deliver(event)
        except Exception as error:
            raise GenerationError(f"on_event failed: {error!r}") from error
        return event.result is not None
