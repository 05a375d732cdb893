"""How large the calls for prompts are, on a clock that moves as a 0.5B model on two cores would have it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from q2export.runtime.scheduler.pace import Pace, slots_together
from tests.runtime.fakes import FakeBackend
from tests.runtime.scheduler.driver import Driver

STEP = {1: 35, 2: 39, 3: 44, 4: 50, 5: 57, 6: 63, 7: 69, 8: 76}  # ms, by rows
CALL, TOKEN = 30, 1.2  # ms of a call for prompts, and of each of its tokens


class ClockedBackend(FakeBackend):
    now = 0.0

    def forward(self, cache: Any, input_ids: Any, *arguments: Any, **others: Any) -> Any:
        rows, width = input_ids.shape
        self.now += STEP[rows] / 1000 if width == 1 else (CALL + TOKEN * input_ids.size) / 1000
        return super().forward(cache, input_ids, *arguments, **others)


def driver(monkeypatch: pytest.MonkeyPatch, interval: float) -> tuple[Driver, ClockedBackend]:
    backend = ClockedBackend(max_capacity=1024, prefill_chunk=256)
    monkeypatch.setattr(time, "perf_counter", lambda: backend.now)
    made = Driver(backend, prefix_bytes=0)
    made.loop._pace = Pace(interval, backend.prefill_chunk)
    return made, backend


def prompts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 64, (count, length)).tolist()


def test_eight_requests_at_once_take_little_longer_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, backend = driver(monkeypatch, 0.2)
    made.engine.generate_batch(prompts(8, 64), max_new_tokens=48)
    batch, backend.now = backend.now, 0.0
    for warm in (False, True):  # the first time it measures
        begun = backend.now
        for prompt in prompts(8, 64):
            made.submit(prompt, max_new_tokens=48)
        made.run()
        if warm:
            assert backend.now - begun < 1.04 * batch


def test_texts_go_on_while_a_long_prompt_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, backend = driver(monkeypatch, 0.2)
    for prompt in prompts(4, 20):
        made.submit(prompt, max_new_tokens=60)
    for _ in range(9):
        made.step()
    long = made.submit(prompts(1, 900)[0], max_new_tokens=1)
    gaps, last = [], backend.now
    while not long.done:
        if made.step()[-1][:2] == (4, 1):
            gaps.append(backend.now - last)
            last = backend.now
    assert len(gaps) > 5
    assert max(gaps[1:]) < 0.23
    assert min(gaps[2:-1]) > 0.15, "the interval is used"


def test_slots_together() -> None:
    assert slots_together({3: 10}, 3, 64, 8) == (3, 4, 10)
    assert slots_together({3: 100}, 3, 64, 8) == (3, 4, 64)
    assert slots_together({2: 9, 3: 10, 4: 12, 6: 10}, 3, 64, 8) == (2, 5, 12)
    assert slots_together({2: 9, 3: 10, 4: 12}, 3, 64, 2) == (3, 5, 12)
    assert slots_together({2: 9, 3: 10, 4: 12}, 3, 25, 8) == (3, 5, 12)
    assert slots_together({3: 200, 4: 20}, 3, 256, 8) == (3, 4, 200), "padding would cost more than a call"
    assert slots_together({3: 200, 4: 20}, 4, 256, 8) == (3, 5, 20), "the long one takes a piece along"
