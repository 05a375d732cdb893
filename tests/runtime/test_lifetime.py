"""Cancelling streams and closing engines, from the thread that generates and from others."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from q2export.errors import GenerationError
from q2export.runtime.engine import Engine
from tests.runtime.fakes import FakeBackend

PATIENCE = 5  # seconds until a test that hangs fails


class HeldBackend(FakeBackend):
    """Each call waits until it is let go; ``begun`` is released when one begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)

    def forward(self, *arguments: Any, **others: Any) -> Any:
        self.begun.release()
        assert self.let_go.acquire(timeout=PATIENCE)
        return super().forward(*arguments, **others)


def test_a_stream_is_cancelled_while_another_thread_computes() -> None:
    backend = HeldBackend()
    stream = Engine(backend).stream([1], max_new_tokens=50)
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(list, stream)
        for _ in range(3):
            backend.let_go.release()
            assert backend.begun.acquire(timeout=PATIENCE)
        assert backend.begun.acquire(timeout=PATIENCE)  # the fourth call runs
        stream.cancel()
        backend.let_go.release()
        found = events.result(timeout=PATIENCE)
    assert stream.cancelled
    assert len(backend.calls) == 4
    assert len(found) in (3, 4)
    assert all(event.result is None for event in found)
    assert list(stream) == []


def test_a_stream_is_cancelled_within_a_long_prompt() -> None:
    backend = HeldBackend()
    stream = Engine(backend).stream([1] * 200, max_new_tokens=5)
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(list, stream)
        assert backend.begun.acquire(timeout=PATIENCE)
        stream.cancel()
        backend.let_go.release()
        assert events.result(timeout=PATIENCE) == []
    assert len(backend.calls) == 1


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_cancelled_stream_frees_its_cache(end: str) -> None:
    backend = FakeBackend()
    engine = Engine(backend)
    stream = engine.stream([1], max_new_tokens=50)
    next(stream)
    cache = weakref.ref(backend.caches.pop())
    getattr(stream, end)()
    gc.collect()
    assert cache() is None
    assert list(stream) == []
    stream.cancel()
    assert len(engine.generate([1], max_new_tokens=3).token_ids) == 3


def test_a_stream_cancelled_before_it_begins_computes_nothing() -> None:
    backend = FakeBackend()
    with Engine(backend).stream([1], max_new_tokens=5) as stream:
        stream.cancel()
        assert list(stream) == []
    assert backend.calls == []


def test_leaving_the_block_cancels_and_a_whole_stream_stays_whole() -> None:
    engine = Engine(FakeBackend())
    with contextlib.closing(engine.stream([1], max_new_tokens=4)) as stream:
        events = list(stream)
    assert events[-1].result is not None
    assert events[-1].result.token_ids == engine.generate([1], max_new_tokens=4).token_ids


def test_two_threads_may_share_a_stream() -> None:
    stream = Engine(FakeBackend()).stream([1], max_new_tokens=200)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: list(stream), range(4)))
    assert sum(map(len, parts)) == 200


USES: list[Callable[[Engine], object]] = [
    lambda e: e.generate([1]),
    lambda e: e.generate_batch([[1]]),
    lambda e: e.stream([1]),
    lambda e: e.score([1]),
    lambda e: list(e.score_pieces([1])),
    lambda e: e.backend,
]


@pytest.mark.parametrize("use", USES)
def test_a_closed_engine_says_so(use: Callable[[Engine], object]) -> None:
    backend = FakeBackend()
    with Engine(backend) as engine:
        pass
    engine.close()
    with pytest.raises(GenerationError, match="the engine is closed"):
        use(engine)
    assert backend.calls == []


def test_closing_ends_what_runs_and_waits_for_its_step() -> None:
    backend = HeldBackend()
    engine = Engine(backend)
    closed = threading.Event()

    def close() -> None:
        engine.close()
        closed.set()

    with ThreadPoolExecutor(2) as pool:
        generation = pool.submit(engine.generate, [1], max_new_tokens=50)
        assert backend.begun.acquire(timeout=PATIENCE)
        closing = pool.submit(close)
        while not engine.lifetime._closed:
            pass
        assert not closed.is_set()
        backend.let_go.release()
        closing.result(timeout=PATIENCE)
        with pytest.raises(GenerationError, match="the engine is closed"):
            generation.result(timeout=PATIENCE)
    assert len(backend.calls) == 1


def test_a_stream_of_a_closed_engine_says_so() -> None:
    engine = Engine(FakeBackend())
    stream = engine.stream([1], max_new_tokens=9)
    next(stream)
    engine.close()
    with pytest.raises(GenerationError, match="the engine is closed"):
        next(stream)


def test_the_engine_may_be_closed_from_within_a_step() -> None:
    """As a signal handler does, which runs in the middle of whatever the thread was at."""

    class ClosingBackend(FakeBackend):
        def forward(self, *arguments: Any) -> Any:
            engine.close()
            return super().forward(*arguments)

    engine = Engine(ClosingBackend())
    with pytest.raises(GenerationError, match="the engine is closed"):
        engine.generate([1], max_new_tokens=9)


def test_closing_frees_the_backend() -> None:
    engine = Engine(FakeBackend())
    engine.generate([1], max_new_tokens=2)
    backend = weakref.ref(engine.backend)
    engine.close()
    gc.collect()
    assert backend() is None
