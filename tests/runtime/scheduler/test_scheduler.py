"""The scheduler's thread, and the threads that use it."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from q2export.errors import (
    CancelledError,
    ClosedError,
    DeadlineError,
    GenerationError,
    OptionError,
    Q2ExportError,
    QueueFullError,
)
from q2export.runtime.engine import Engine
from q2export.runtime.results import TokenEvent
from q2export.runtime.scheduler import Scheduler, SchedulerOptions
from tests.runtime.fakes import FakeBackend
from tests.runtime.scheduler.driver import alone
from tests.runtime.test_lifetime import HeldBackend

PATIENCE = 5  # seconds until a test that hangs fails


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, count).tolist()


def test_events_are_those_of_a_stream_and_the_result_that_of_generate() -> None:
    engine = Engine(FakeBackend())
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.9, "seed": 5, "logprobs": 3}
    with Scheduler(engine) as scheduler:
        generation = scheduler.submit(tokens(1, 9), **options)
        events = list(generation)
        result = generation.result(0)
    expected = list(engine.stream(tokens(1, 9), **options))
    assert [(e.token_id, e.text, e.logprobs) for e in events] == [
        (e.token_id, e.text, e.logprobs) for e in expected
    ]
    assert events[-1].result is result
    assert expected[-1].result is not None
    assert (result.token_ids, result.logprobs) == (
        expected[-1].result.token_ids,
        expected[-1].result.logprobs,
    )
    assert (generation.done, generation.cancelled, generation.error) == (True, False, None)
    assert list(generation) == []
    timings = result.timings
    assert 0 <= timings.queue_seconds <= timings.time_to_first_token
    assert timings.generated_tokens == 12


def test_callbacks_take_the_place_of_the_iterator() -> None:
    events: list[TokenEvent] = []
    ends: list[Q2ExportError | None] = []
    with Scheduler(Engine(FakeBackend())) as scheduler:
        generation = scheduler.submit(
            tokens(1, 4), max_new_tokens=5, on_event=events.append, on_end=ends.append
        )
        result = generation.result(PATIENCE)
    assert [event.token_id for event in events] == list(result.token_ids)
    assert events[-1].result is result
    assert ends == [None]
    assert list(generation) == []


def test_a_callback_that_raises_ends_its_request_alone() -> None:
    def broken(event: TokenEvent) -> None:
        raise ValueError("no connection")

    ends: list[Q2ExportError | None] = []
    with Scheduler(Engine(FakeBackend())) as scheduler:
        bad = scheduler.submit(tokens(1, 4), on_event=broken, on_end=ends.append)
        fine = scheduler.submit(tokens(2, 4), max_new_tokens=7)
        with pytest.raises(GenerationError, match=r"on_event failed: ValueError\('no connection'\)"):
            bad.result(PATIENCE)
        assert fine.result(PATIENCE).token_ids == alone(tokens(2, 4), max_new_tokens=7)
    assert ends == [bad.error]


def test_several_continuations_of_one_prompt() -> None:
    prompt = tokens(1, 60)
    ends: list[tuple[int, Q2ExportError | None]] = []
    with Scheduler(Engine(FakeBackend())) as scheduler:
        several = scheduler.submit_many(
            prompt, 3, seed=4, temperature=1.0, max_new_tokens=6, on_end=lambda *end: ends.append(end)
        )
        found = [each.result(PATIENCE).token_ids for each in several]
        assert scheduler.drain(PATIENCE)
        assert scheduler.statistics().prompt_tokens == 60 + 1 + 1
    assert found == [alone(prompt, seed=4 + each, temperature=1.0, max_new_tokens=6) for each in range(3)]
    assert sorted(ends) == [(0, None), (1, None), (2, None)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.submit([]), "the prompt is empty"),
        (lambda s: s.submit([64]), "outside the vocabulary"),
        (lambda s: s.submit([1], tempratur=1), "did you mean 'temperature'"),
        (lambda s: s.submit([1] * 60), "has 60 tokens, the engine's capacity is 50"),
        (lambda s: s.submit([1], logit_bias={64: 1}), "logit_bias: token id 64 .* outside the vocabulary"),
        (lambda s: s.submit([1], deadline=0), "deadline must be seconds from now, above 0, found 0"),
        (lambda s: s.submit([1], deadline=float("nan")), "deadline must be"),
        (lambda s: s.submit([1], priority=1.5), "priority must be an integer, found 1.5"),
        (lambda s: s.submit_many([1], 0), "count must be an integer of at least 1, found 0"),
    ],
)
def test_what_is_wrong_is_refused_at_once(call: Any, message: str) -> None:
    backend = FakeBackend()
    with Scheduler(Engine(backend), SchedulerOptions(kv_tokens=50)) as scheduler:
        with pytest.raises(GenerationError, match=message):
            call(scheduler)
        assert scheduler.statistics().waiting == 0
    assert backend.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows must be an integer of at least 1 or None, found 0"),
        ({"rows": 9}, "rows must be at most 8"),
        ({"capacity": 300}, "capacity must be at most 256"),
        ({"queue_limit": None}, "queue_limit must be an integer of at least 0, found None"),
        ({"memory_share": 0}, "memory_share must be above 0 and at most 1, found 0"),
        ({"memory_share": True}, "memory_share must be above 0 and at most 1, found True"),
        ({"token_interval": float("inf")}, "token_interval must be seconds"),
        ({"speculate": True}, "speculate must be an integer"),
    ],
)
def test_options_out_of_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Scheduler(Engine(FakeBackend()), SchedulerOptions(**options))


def test_the_queue_has_a_limit() -> None:
    backend = HeldBackend()
    with Scheduler(Engine(backend), SchedulerOptions(rows=1, queue_limit=2)) as scheduler:
        several = [scheduler.submit([1], max_new_tokens=1) for _ in range(3)]
        with pytest.raises(
            QueueFullError, match="3 requests are there, of which 1 run at once and 2 may wait"
        ):
            scheduler.submit([1])
        with pytest.raises(QueueFullError):
            scheduler.submit_many([1], 2)
        backend.let_go.release(3)
        assert [len(each.result(PATIENCE).token_ids) for each in several] == [1, 1, 1]


def test_a_deadline_passes_while_a_step_runs() -> None:
    backend = HeldBackend()
    with Scheduler(Engine(backend)) as scheduler:
        generation = scheduler.submit([1], deadline=0.001)
        assert backend.begun.acquire(timeout=PATIENCE) or generation.done
        threading.Event().wait(0.01)
        backend.let_go.release(9)
        with pytest.raises(DeadlineError):
            generation.result(PATIENCE)
        assert len(backend.calls) <= 1


def test_draining_finishes_what_is_there_and_takes_nothing_more() -> None:
    backend = HeldBackend()
    scheduler = Scheduler(Engine(backend), SchedulerOptions(rows=1))
    several = [scheduler.submit([each], max_new_tokens=2) for each in range(3)]
    assert not scheduler.drain(0.01)
    with pytest.raises(ClosedError, match="draining or closed"):
        scheduler.submit([1])
    backend.let_go.release(100)
    assert scheduler.drain(PATIENCE)
    assert all(each.result(0) for each in several)
    scheduler.close()
    scheduler.close()


def test_closing_ends_all_requests() -> None:
    backend = HeldBackend()
    scheduler = Scheduler(Engine(backend), SchedulerOptions(rows=1))
    ends: list[Q2ExportError | None] = []
    several = [scheduler.submit([each], on_end=ends.append) for each in range(3)]
    assert backend.begun.acquire(timeout=PATIENCE)
    backend.let_go.release(1000)
    scheduler.close()
    for each in several:
        with pytest.raises(ClosedError, match="the scheduler was closed"):
            each.result(PATIENCE)
    assert ends == [each.error for each in several]


def test_closing_frees_the_cache_and_lets_go_of_the_engine() -> None:
    backend = FakeBackend()
    engine = Engine(backend)
    scheduler = Scheduler(engine)
    assert scheduler.submit([1], max_new_tokens=3).result(PATIENCE)
    arena, held = weakref.ref(backend.caches.pop()), weakref.ref(backend)
    scheduler.close()
    gc.collect()
    assert arena() is None
    assert scheduler.statistics().finished == 1
    engine.close()
    del backend
    gc.collect()
    assert held() is None


def test_draining_ends_behind_the_last_callback() -> None:
    """Whatever wakes it meanwhile."""
    ends: list[Q2ExportError | None] = []
    for _ in range(50):
        with Scheduler(Engine(FakeBackend())) as scheduler:
            several = [scheduler.submit([1], max_new_tokens=2, on_end=ends.append) for _ in range(4)]
            several[0].cancel()
            assert scheduler.drain(PATIENCE)
            assert len(ends) == 4
            ends.clear()


def test_it_may_be_closed_from_its_own_thread() -> None:
    scheduler = Scheduler(Engine(FakeBackend()))
    generation = scheduler.submit([1], on_event=lambda _: scheduler.close())
    with pytest.raises(ClosedError):
        generation.result(PATIENCE)
    scheduler.close()


def test_an_engine_that_fails_ends_what_is_there_and_serves_what_comes_after() -> None:
    all_there = threading.Event()

    class FailingBackend(FakeBackend):
        fails = True

        def forward(self, *arguments: Any, **others: Any) -> Any:
            if self.fails and len(self.calls) == 2:
                assert all_there.wait(PATIENCE)
            if self.fails and len(self.calls) == 3:
                self.fails = False
                raise RuntimeError("the cable is out")
            return super().forward(*arguments, **others)

    with Scheduler(Engine(FailingBackend())) as scheduler:
        several = [scheduler.submit(tokens(each, 5)) for each in range(12)]
        all_there.set()
        for each in several:
            with pytest.raises(GenerationError, match=r"the engine failed: RuntimeError.*the cable is out"):
                each.result(PATIENCE)
        statistics = scheduler.statistics()
        assert (statistics.kv_tokens_used, statistics.kv_tokens_retained, statistics.failed) == (0, 0, 12)
        after = scheduler.submit(tokens(1, 5), max_new_tokens=9).result(PATIENCE)
        assert after.token_ids == alone(tokens(1, 5), max_new_tokens=9)


def test_closing_the_engine_ends_all_requests() -> None:
    backend = HeldBackend()
    engine = Engine(backend)
    with Scheduler(engine) as scheduler:
        generation = scheduler.submit([1])
        assert backend.begun.acquire(timeout=PATIENCE)
        backend.let_go.release(1000)
        engine.close()
        with pytest.raises(GenerationError, match="the engine is closed"):
            generation.result(PATIENCE)
        with pytest.raises(GenerationError, match="the engine is closed"):
            scheduler.submit([1])


def test_waiting_for_a_result_may_end_before_it_is_there() -> None:
    backend = HeldBackend()
    with Scheduler(Engine(backend)) as scheduler:
        generation = scheduler.submit([1], max_new_tokens=1)
        with pytest.raises(TimeoutError, match=r"has not ended within 0.01 s"):
            generation.result(0.01)
        backend.let_go.release()
        assert generation.result(PATIENCE).token_ids


def test_leaving_the_block_cancels() -> None:
    with Scheduler(Engine(FakeBackend())) as scheduler:
        with scheduler.submit([1], max_new_tokens=200) as generation:
            next(generation)
        with pytest.raises(CancelledError):
            generation.result(PATIENCE)
        assert scheduler.drain(PATIENCE)
        assert scheduler.statistics().cancelled == 1


def test_many_threads_cancel_at_random() -> None:
    """Requests from eight threads: whoever is not cancelled gets its own text, and nothing is left behind."""
    engine = Engine(FakeBackend())
    stems = [tokens(seed, 40) for seed in range(4)]
    options = SchedulerOptions(rows=5, kv_tokens=400, queue_limit=1000)

    def use(thread: int) -> int:
        whims = random.Random(thread)
        whole = 0
        for each in range(20):
            prompt = [*whims.choice(stems)[: whims.randint(1, 40)], thread, each]
            seeds = {"seed": each, "temperature": whims.choice([0.0, 1.0]), "max_new_tokens": 15}
            generation = scheduler.submit(prompt, priority=whims.randint(0, 1), **seeds)
            found, wanted = [], whims.choice([0, 3, 99, 99])
            for event in generation:
                found.append(event.token_id)
                if len(found) >= wanted:
                    generation.cancel()
            expected = alone(prompt, **seeds)
            assert tuple(found) == expected[: len(found)]
            if wanted == 99:
                assert generation.result(PATIENCE).token_ids == expected
                whole += 1
        return whole

    with Scheduler(engine, options) as scheduler, ThreadPoolExecutor(8) as pool:
        whole = sum(pool.map(use, range(8)))
        assert scheduler.drain(PATIENCE)
        statistics = scheduler.statistics()
    assert (statistics.waiting, statistics.running, statistics.kv_tokens_used) == (0, 0, 0)
    assert statistics.finished + statistics.cancelled == 160
    assert statistics.finished >= whole
