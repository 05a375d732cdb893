"""What each step computes, and who runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from q2export.errors import CancelledError, DeadlineError, GenerationError
from q2export.runtime.backends.base import Float32Array
from tests.runtime.fakes import FakeBackend, hashed_logits
from tests.runtime.scheduler.driver import Driver, alone, drained


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, count).tolist()


def test_requests_join_while_others_generate_and_leave_at_any_step() -> None:
    driver = Driver()
    first = driver.submit(tokens(1, 5), max_new_tokens=9)
    assert driver.step() == [(1, 5, 1)]
    assert driver.step() == [(1, 1, 1)]
    second = driver.submit(tokens(2, 3), max_new_tokens=3)
    assert driver.step() == [(1, 3, 1)]  # beside the first, which keeps its slot
    assert driver.slots_of("decoding") == [0, 1]
    assert driver.step() == [(2, 1, 1)]
    assert driver.step() == [(2, 1, 1)]
    assert second.done
    assert driver.step() == [(1, 1, 1)]
    driver.run()
    assert first.result(0).token_ids == alone(tokens(1, 5), max_new_tokens=9)
    assert second.result(0).token_ids == alone(tokens(2, 3), max_new_tokens=3)


def test_short_prompts_that_wait_go_in_one_call() -> None:
    driver = Driver(FakeBackend(prefill_chunk=64))
    for seed in range(6):
        driver.submit(tokens(seed, 5 + seed), max_new_tokens=2)
    assert driver.step() == [(6, 10, 1)]
    assert driver.step() == [(6, 1, 1)]
    assert driver.is_idle


def test_a_long_prompt_does_not_hold_up_a_short_one_nor_the_texts_that_run() -> None:
    driver = Driver()
    driver.submit(tokens(1, 4), max_new_tokens=60)
    driver.step()
    driver.submit(tokens(2, 160), max_new_tokens=1)
    short = driver.submit(tokens(3, 6), max_new_tokens=1)
    calls: list[tuple[int, int, int]] = []
    while not short.done:
        calls += driver.step()
    assert len(calls) <= 8
    assert calls.count((1, 1, 1)) >= len(calls) // 2 - 1, "every other step is one of the text that runs"
    driver.run()


def test_a_short_prompt_does_not_hold_up_a_long_one_for_ever() -> None:
    driver = Driver(rows=2)
    long = driver.submit(tokens(1, 120), max_new_tokens=1)
    for seed in range(2, 80):
        driver.submit(tokens(seed, 8), max_new_tokens=1)
    for _ in range(31):
        driver.step()
    assert long.done
    assert 14 <= sum(request.generation.done for request in driver.requests) <= 18


def test_a_conversation_is_continued_where_it_lies() -> None:
    """Of the second turn only what is new is given to the engine; nothing is copied."""
    driver = Driver(FakeBackend(prefill_chunk=64))
    prompt = tokens(1, 40)
    answer = driver.submit(prompt, max_new_tokens=10)
    driver.run()
    turn = [*prompt, *answer.result(0).token_ids, *tokens(2, 7)]
    driver.backend.calls.clear()
    second = driver.submit(turn, max_new_tokens=4)
    driver.run()
    assert driver.backend.calls == [(1, 8, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    assert driver.cache.copied == []
    timings = second.result(0).timings
    assert (timings.prompt_tokens, timings.cached_prompt_tokens) == (57, 49)
    assert second.result(0).token_ids == alone(turn, max_new_tokens=4)
    counts = driver.loop.counts
    assert (counts.prefix_hits, counts.cached_prompt_tokens, counts.prompt_tokens) == (1, 49, 48)


def test_the_same_prompt_again_recomputes_its_last_token() -> None:
    driver = Driver(FakeBackend(prefill_chunk=64))
    for _ in range(2):
        generation = driver.submit(tokens(1, 40), max_new_tokens=1)
        driver.run()
        assert generation.result(0).token_ids == alone(tokens(1, 40), max_new_tokens=1)
    assert driver.backend.calls == [(1, 40, 1), (1, 1, 1)]


def test_a_prefix_that_another_prompt_is_about_to_compute_is_waited_for() -> None:
    driver = Driver(FakeBackend(prefill_chunk=64))
    stem = tokens(1, 50)
    several = [driver.submit([*stem, each], max_new_tokens=3) for each in range(4)]
    other = driver.submit(tokens(2, 4), max_new_tokens=3)
    driver.run()
    assert driver.loop.counts.prompt_tokens == 51 + 3 + 4
    for each, generation in enumerate(several):
        assert generation.result(0).token_ids == alone([*stem, each], max_new_tokens=3)
    assert other.result(0).token_ids == alone(tokens(2, 4), max_new_tokens=3)


def test_the_prefix_unused_for_longest_goes_first() -> None:
    driver = Driver(prefix_bytes=8 * 100)  # tokens of 8 bytes
    stems = [tokens(seed, 40) for seed in range(3)]
    for stem in (stems[0], stems[1], [*stems[0], 5], stems[2]):
        driver.submit(stem, max_new_tokens=1)
        driver.run()
    assert driver.loop.lineup.slots.retained == 81
    driver.submit(stems[1], max_new_tokens=1)
    driver.run()
    assert driver.loop.counts.cached_prompt_tokens == 40, "of all, only the second use of the first"


def test_without_a_budget_for_prefixes_all_memory_is_free_at_the_end() -> None:
    driver = Driver(prefix_bytes=0)
    for seed in range(3):
        driver.submit(tokens(seed, 30), max_new_tokens=seed + 1)
    driver.run()
    assert driver.cache.lengths == [0] * driver.cache.batch
    assert driver.loop.lineup.slots.retained == 0


def test_a_prefix_that_another_one_contains_is_not_kept_twice() -> None:
    driver = Driver()
    for _ in range(3):
        both = [
            driver.submit(tokens(1, 30), max_new_tokens=4),
            driver.submit(tokens(1, 30), max_new_tokens=9),
        ]
        driver.run()
        assert all(each.done for each in both)
    assert driver.loop.lineup.slots.retained == 38


def test_preemption_loses_nothing() -> None:
    driver = Driver(kv_tokens=200)
    several = [driver.submit(tokens(seed, 20), max_new_tokens=170) for seed in range(2)]
    driver.run()
    assert driver.loop.counts.preemptions > 0
    for seed, generation in enumerate(several):
        assert generation.result(0).token_ids == alone(tokens(seed, 20), max_new_tokens=170)
        assert len(drained(generation)) == 170, "no token comes twice"
    assert driver.ended == [0, 1], "the older one goes on"


def test_priority_takes_the_place_of_the_youngest_of_lower_priority() -> None:
    driver = Driver(rows=2, prefix_bytes=0)
    low = [driver.submit(tokens(seed, 6), max_new_tokens=20) for seed in range(3)]
    for _ in range(4):
        driver.step()
    high = driver.submit(tokens(9, 6), priority=1, max_new_tokens=3)
    driver.step()
    assert [each.arrival for each in driver.loop.waiting] == [1, 2]
    driver.run()
    assert driver.ended == [3, 0, 1, 2]
    for seed, generation in enumerate(low):
        assert generation.result(0).token_ids == alone(tokens(seed, 6), max_new_tokens=20)
    assert high.result(0).token_ids == alone(tokens(9, 6), max_new_tokens=3)


@pytest.mark.parametrize("begun", [0, 1, 4])
def test_a_cancelled_request_ends_before_the_next_call(begun: int) -> None:
    driver = Driver(prefix_bytes=0)
    other = driver.submit(tokens(1, 4), max_new_tokens=9)
    cancelled = driver.submit(tokens(2, 30), max_new_tokens=9)
    for _ in range(begun):
        driver.step()
    cancelled.cancel()
    driver.step()
    assert cancelled.done
    assert driver.loop.lineup.slots.used <= 4 + 9
    drained(cancelled)
    with pytest.raises(CancelledError, match=r"cancelled after \d tokens"):
        cancelled.result(0)
    driver.run()
    assert other.result(0).token_ids == alone(tokens(1, 4), max_new_tokens=9)


def test_deadlines_of_those_that_run_and_of_those_that_wait() -> None:
    driver = Driver(rows=1)
    now = time.monotonic()
    runs = driver.submit(tokens(1, 4), deadline=now + 1000, max_new_tokens=9)
    late = driver.submit(tokens(2, 4), deadline=now, max_new_tokens=9)
    driver.step()
    assert (runs.done, late.done) == (False, True)
    with pytest.raises(DeadlineError, match="the deadline of the request has passed after 0 tokens"):
        list(late)
    driver.requests[0].deadline = now
    driver.step()
    with pytest.raises(DeadlineError, match="after 1 tokens"):
        runs.result(0)
    assert driver.is_idle


def test_logits_that_are_not_finite_end_one_request_alone() -> None:
    def model(prefix: Sequence[int], vocab_size: int) -> Float32Array:
        logits = hashed_logits(prefix, vocab_size)
        if prefix[0] == 63 and len(prefix) == 25:
            logits[40] = np.nan
        return logits

    driver = Driver(FakeBackend(model=model))
    prompts = [tokens(1, 20), [63] * 20, tokens(3, 20)]
    good, bad, fine = (driver.submit(prompt, max_new_tokens=9) for prompt in prompts)
    driver.run()
    with pytest.raises(GenerationError, match="nan as the logit of token 40 after token 24"):
        bad.result(0)
    for generation, prompt in ((good, prompts[0]), (fine, prompts[2])):
        assert generation.result(0).token_ids == alone(prompt, max_new_tokens=9)
    held = [each.tolist() for each in (slot.prefix for slot in driver.loop.lineup.slots._prefixes())]
    assert all(prefix[0] != 63 for prefix in held), "nobody takes what it computed"


def test_biases_and_penalties_are_of_the_request() -> None:
    driver = Driver()
    several: list[dict[str, Any]] = [
        {"logit_bias": {5: 100.0}},
        {"logit_bias": {5: 100.0}, "presence_penalty": 2.0},
        {"frequency_penalty": 2.0, "temperature": 1.0, "seed": 2},
        {},
    ]
    generations = [driver.submit(tokens(1, 9), max_new_tokens=12, **options) for options in several]
    driver.run()
    for generation, options in zip(generations, several, strict=True):
        assert generation.result(0).token_ids == alone(tokens(1, 9), max_new_tokens=12, **options)
    assert generations[0].result(0).token_ids == (5,) * 12


class OddsOnly:
    """Lets odd tokens come, says stop after four, and breaks where it is told to."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.accepted: list[int] = []
        self.breaks_at = breaks_at

    @property
    def finished(self) -> bool:
        return len(self.accepted) == 4

    def process(self, logits: Float32Array) -> None:
        if len(self.accepted) == self.breaks_at:
            raise RuntimeError("the grammar is broken")
        logits[::2] = -np.inf

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def test_a_processor_decides_which_tokens_may_come_and_when_the_text_ends() -> None:
    driver = Driver()
    processor = OddsOnly()
    masked = driver.submit(tokens(1, 5), processor=processor, max_new_tokens=9, logprobs=1)
    free = driver.submit(tokens(1, 5), max_new_tokens=9)
    driver.run()
    result = masked.result(0)
    assert all(token % 2 for token in result.token_ids)
    assert (list(result.token_ids), result.finish_reason) == (processor.accepted, "stop")
    assert free.result(0).token_ids == alone(tokens(1, 5), max_new_tokens=9)
    assert result.logprobs is not None
    likeliest = result.logprobs[0].top[0][0]
    assert likeliest == free.result(0).token_ids[0], "log probabilities know nothing of the processor"


def test_a_processor_that_breaks_ends_its_request_alone() -> None:
    driver = Driver()
    broken = driver.submit(tokens(1, 5), processor=OddsOnly(breaks_at=2), max_new_tokens=9)
    fine = driver.submit(tokens(2, 5), max_new_tokens=9)
    driver.run()
    with pytest.raises(GenerationError, match=r"the logits processor failed: RuntimeError.*is broken"):
        broken.result(0)
    assert fine.result(0).token_ids == alone(tokens(2, 5), max_new_tokens=9)


def test_a_processor_that_forbids_everything_is_an_error() -> None:
    class Nothing(OddsOnly):
        def process(self, logits: Float32Array) -> None:
            logits[:] = -np.inf

    driver = Driver()
    stuck = driver.submit(tokens(1, 5), processor=Nothing(), temperature=1.0)
    driver.run()
    with pytest.raises(GenerationError, match="the processor forbids every token"):
        stuck.result(0)


def repeating(prefix: Sequence[int], vocab_size: int) -> Float32Array:
    """After 10, 11, ... 19 comes 10 again, except that every seventh token is something else."""
    logits = np.zeros(vocab_size, np.float32)
    logits[10 + len(prefix) % 10 if len(prefix) % 37 else hash(tuple(prefix)) % 10] = 5
    return logits


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 3}, {"frequency_penalty": 0.2}])
def test_guesses_change_no_text_and_save_steps(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call takes as long whatever its width."""
    found = {}
    for speculate in (0, 4):
        backend = FakeBackend(model=repeating)
        monkeypatch.setattr("time.perf_counter", lambda calls=backend.calls: float(len(calls)))
        driver = Driver(backend, speculate=speculate)
        generation = driver.submit([10], max_new_tokens=120, logprobs=2, **options)
        driver.run()
        events = [(event.token_id, event.logprobs) for event in drained(generation)]
        found[speculate] = (events, len(backend.calls))
    assert found[0][0] == found[4][0]
    assert found[4][1] < found[0][1]
    if not options:
        assert found[4][1] < found[0][1] / 2


def test_guesses_that_do_not_pay_end() -> None:
    def model(prefix: Sequence[int], vocab_size: int) -> Float32Array:
        """Pairs repeat, and what follows them does not."""
        if len(prefix) % 2 == 0:
            return hashed_logits(prefix, vocab_size)
        return np.eye(vocab_size, dtype=np.float32)[prefix[-1] ^ 1]

    class SlowBackend(FakeBackend):
        def forward(self, cache: Any, input_ids: Any, *arguments: Any, **others: Any) -> Any:
            now[0] += 1.0 * input_ids.shape[1]
            return super().forward(cache, input_ids, *arguments, **others)

    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: now[0])
        driver = Driver(SlowBackend(model=model), speculate=4)
        driver.submit([1, 2, 3], max_new_tokens=250)
        driver.run()
    guessed = [width for _, width, _ in driver.backend.calls[1:] if width > 1]
    assert 0 < len(guessed) < 20


def test_nobody_is_guessed_for_beside_others() -> None:
    driver = Driver(FakeBackend(model=repeating), speculate=4)
    both = [driver.submit([10], max_new_tokens=40, seed=seed) for seed in range(2)]
    driver.run()
    assert all(width == 1 for rows, width, _ in driver.backend.calls if rows == 2)
    assert both[0].result(0).token_ids == both[1].result(0).token_ids
