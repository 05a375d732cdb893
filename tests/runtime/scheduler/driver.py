"""A scheduler's loop run by hand, step by step, which checks after each what must always hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q2export.runtime.engine import Engine
from q2export.runtime.generation_config import GenerationDefaults
from q2export.runtime.results import TokenEvent
from q2export.runtime.sampling import LogitsProcessor
from q2export.runtime.scheduler import ScheduledGeneration, SchedulerOptions
from q2export.runtime.scheduler.arena import allocate_arena
from q2export.runtime.scheduler.loop import Loop
from q2export.runtime.scheduler.pace import Pace
from q2export.runtime.scheduler.request import Request
from tests.runtime.fakes import FakeBackend, FakeCache

if TYPE_CHECKING:
    from typing import Unpack

    from q2export.runtime.options import OptionKeywords


class Driver:
    """Requests, a loop over a fake engine, and the tokens each request was handed."""

    def __init__(self, backend: FakeBackend | None = None, eos: Sequence[int] = (), **options: Any) -> None:
        self.backend = FakeBackend() if backend is None else backend
        self.engine = Engine(self.backend, defaults=GenerationDefaults(eos_token_ids=tuple(eos)))
        chosen = SchedulerOptions(**options)
        arena = allocate_arena(self.backend, chosen)
        self.arena = arena
        pace = Pace(0.0, self.backend.prefill_chunk)
        self.loop = Loop(self.backend, arena, pace, self.engine.lifetime.computing, chosen.speculate)
        self.requests: list[Request] = []
        self.ended: list[int] = []

    @property
    def cache(self) -> FakeCache:
        cache: FakeCache = self.arena.cache
        return cache

    def submit(
        self,
        prompt: Sequence[int],
        *,
        priority: int = 0,
        deadline: float | None = None,
        processor: LogitsProcessor | None = None,
        **options: Unpack[OptionKeywords],
    ) -> ScheduledGeneration:
        processors = () if processor is None else (processor,)
        capacity = self.arena.request_tokens
        (sequence,) = self.engine.sequences([prompt], options, capacity=capacity, processors=processors)
        number = len(self.requests)
        generation = ScheduledGeneration(None, lambda _: self.ended.append(number), lambda: None)
        self.requests.append(Request(sequence, generation, priority, number, deadline))
        self.loop.add(self.requests[-1])
        return generation

    @property
    def is_idle(self) -> bool:
        return not self.loop.waiting and len(self.loop.lineup) == 0

    def step(self) -> list[tuple[int, int, int]]:
        """The calls of the engine in one step."""
        before = len(self.backend.calls)
        self.loop.step()
        self.check()
        return self.backend.calls[before:]

    def run(self) -> None:
        """Until all have ended."""
        for _ in range(5000):
            if self.is_idle:
                return
            self.step()
        raise AssertionError("requests never end")

    def check(self) -> None:
        lineup, slots = self.loop.lineup, self.loop.lineup.slots
        assert [each.slot for each in lineup.decoding] == list(range(len(lineup.decoding)))
        assert len(lineup) <= self.arena.rows
        assert slots.used + slots.retained <= self.arena.kv_tokens
        assert slots.retained <= self.arena.prefix_tokens
        assert slots.used == sum(each.cached for each in lineup)
        for slot in range(self.cache.batch):
            resident = slots[slot]
            held = self.cache.slots[slot]
            if resident is None:
                assert self.cache.lengths[slot] == 0, "the memory of a free slot is given back"
            else:
                assert resident.slot == slot
                assert held[: resident.cached] == resident.tokens.tolist()

    def slots_of(self, kind: str) -> list[int]:
        return [each.slot for each in getattr(self.loop.lineup, kind)]


def alone(prompt: Sequence[int], eos: Sequence[int] = (), **options: Any) -> tuple[int, ...]:
    """What :meth:`Engine.generate` says on a fresh engine."""
    engine = Engine(FakeBackend(), defaults=GenerationDefaults(eos_token_ids=tuple(eos)))
    return engine.generate(prompt, **options).token_ids


def drained(generation: ScheduledGeneration) -> list[TokenEvent]:
    """The tokens that have come; it must have ended."""
    assert generation.done
    return list(generation)
