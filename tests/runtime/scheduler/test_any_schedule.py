"""Whatever comes when: each text is what it is alone, and nothing is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.errors import CancelledError
from tests.runtime.fakes import FakeBackend
from tests.runtime.scheduler.driver import Driver, alone, drained

EOS = (3, 4, 5)
STEMS = [list(range(10, 50)), list(range(10, 34)) + list(range(50, 60)), [7] * 20, [1]]

prompts = st.builds(
    lambda stem, cut, tail: STEMS[stem][: cut or None] + tail,
    st.integers(0, len(STEMS) - 1),
    st.integers(0, 40),
    st.lists(st.integers(0, 63), min_size=1, max_size=6),
)
requests = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "max_new_tokens": st.integers(1, 25),
        "priority": st.integers(0, 2),
        "seed": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 1.3]),
        "penalty": st.sampled_from([0.0, 0.9]),
        "after": st.integers(0, 6),
        "cancel_after": st.sampled_from([None, None, None, 0, 1, 5]),
    }
)
arenas = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 4),
        "kv_tokens": st.sampled_from([80, 130, None]),
        "prefix_bytes": st.sampled_from([0, 400, None]),
        "lazy": st.booleans(),
        "speculate": st.sampled_from([0, 3]),
    }
)


@settings(max_examples=100)
@given(st.lists(requests, min_size=1, max_size=9), arenas)
def test_each_text_is_what_it_is_alone(asked: list[dict[str, Any]], arena: dict[str, Any]) -> None:
    lazy = arena.pop("lazy")
    driver = Driver(FakeBackend(max_batch=4, max_capacity=80, lazy=lazy), EOS, **arena)
    running = []
    for one in asked:
        options = {key: one[key] for key in ("max_new_tokens", "seed", "temperature")}
        options["presence_penalty"] = one["penalty"]
        generation = driver.submit(one["prompt"], priority=one["priority"], **options)
        expected = alone(one["prompt"], EOS, **options)
        running.append((generation, expected, one["cancel_after"]))
        for _ in range(one["after"]):
            driver.step()
        for other, _, cancel_after in running:
            if cancel_after is not None and other._events.qsize() >= cancel_after:
                other.cancel()
    driver.run()
    assert sorted(driver.ended) == list(range(len(asked)))
    for generation, expected, _ in running:
        tokens = tuple(event.token_id for event in drained(generation))
        if generation.error is None:
            assert tokens == expected == generation.result(0).token_ids
        else:
            assert isinstance(generation.error, CancelledError)
            assert generation.cancelled
            assert tokens == expected[: len(tokens)]
    assert driver.loop.lineup.slots.used == 0
