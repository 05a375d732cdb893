from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.errors import GenerationError
from q2export.runtime.engine import Engine
from q2export.runtime.generation_config import GenerationDefaults
from q2export.runtime.options import GenerationOptions
from tests.runtime.fakes import FakeBackend, hashed_logits, scripted

VOCAB = 64


def greedy_reference(prompt: Sequence[int], count: int, eos: Sequence[int] = ()) -> list[int]:
    """The whole prefix again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(hashed_logits(tokens, VOCAB).argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


def engine(backend: FakeBackend | None = None, **defaults: Any) -> Engine:
    return Engine(backend or FakeBackend(), defaults=GenerationDefaults(**defaults))


def scripted_engine(script: Sequence[int], **defaults: Any) -> Engine:
    return engine(FakeBackend(model=scripted(script)), **defaults)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 33])
def test_greedy_equals_the_reference(length: int) -> None:
    prompt = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    result = engine().generate(prompt, max_new_tokens=12)
    assert list(result.token_ids) == greedy_reference(prompt, 12)
    assert result.finish_reason == "length"
    assert result.stop_string is None
    assert not result.has_text
    with pytest.raises(GenerationError, match="no tokenizer"):
        assert result.text


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_tokens_do_not_depend_on_the_chunk(chunk: int) -> None:
    prompt = list(range(23))
    found = engine(FakeBackend(prefill_chunk=chunk)).generate(
        prompt, max_new_tokens=9, temperature=1.0, seed=3
    )
    assert found.token_ids == engine().generate(prompt, max_new_tokens=9, temperature=1.0, seed=3).token_ids


def test_only_the_last_position_of_the_prompt_gets_logits() -> None:
    backend = FakeBackend(prefill_chunk=8)
    engine(backend).generate(list(range(20)), max_new_tokens=3)
    assert backend.calls == [(1, 4, 0), (1, 8, 0), (1, 8, 1), (1, 1, 1), (1, 1, 1)]


def test_cache_holds_what_the_request_needs_and_not_the_maximum() -> None:
    backend = FakeBackend(max_capacity=100)
    for prompt_tokens, new, capacity in ((1, 1, 16), (10, 6, 16), (10, 7, 32), (90, 10, 100)):
        engine(backend).generate([0] * prompt_tokens, max_new_tokens=new)
        assert backend.caches[-1].capacity == capacity


prompts_strategy = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(
    prompts_strategy, st.sampled_from([{}, {"temperature": 1.2, "seed": 11, "top_k": 30}]), st.integers(1, 12)
)
def test_every_row_of_a_batch_is_what_it_is_alone(
    prompts: list[list[int]], options: dict[str, Any], count: int
) -> None:
    """With tokens 0 to 15 ending a text, rows end at different steps and the others are moved up."""
    runner = engine(eos_token_ids=tuple(range(16)))
    results = runner.generate_batch(prompts, max_new_tokens=count, repetition_penalty=1.3, **options)
    for prompt, result in zip(prompts, results, strict=True):
        alone = runner.generate(prompt, max_new_tokens=count, repetition_penalty=1.3, **options)
        assert (result.token_ids, result.finish_reason) == (alone.token_ids, alone.finish_reason)


def test_batch_of_greedy_rows_equals_the_reference() -> None:
    prompts = [[5], list(range(40)), [7, 8, 9], [1] * 17]
    eos = tuple(range(8))
    results = engine(eos_token_ids=eos).generate_batch(prompts, max_new_tokens=20)
    assert [list(r.token_ids) for r in results] == [greedy_reference(p, 20, eos) for p in prompts]


def test_rows_that_have_ended_are_not_computed() -> None:
    """Row i ends after i + 1 tokens: first in first out, whatever its place in the cache."""
    ends = {1: 3, 2: 1, 3: 4, 4: 2}

    def model(prefix: Sequence[int], vocab_size: int) -> Any:
        logits = np.zeros(vocab_size, np.float32)
        logits[9 if len(prefix) - 1 >= ends[prefix[0]] - 1 else 20] = 1
        return logits

    backend = FakeBackend(model=model)
    results = engine(backend, eos_token_ids=(9,)).generate_batch([[1], [2], [3], [4]], max_new_tokens=8)
    assert [len(r.token_ids) for r in results] == [3, 1, 4, 2]
    assert [rows for rows, _, _ in backend.calls] == [4, 3, 2, 1]
    assert all(r.finish_reason == "stop" for r in results)


def test_one_seed_serves_all_rows_and_a_list_gives_each_its_own() -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0}
    same = engine().generate_batch([[1, 2]] * 3, seed=4, **options)
    assert len({r.token_ids for r in same}) == 1
    own = engine().generate_batch([[1, 2]] * 3, seed=[4, 5, 6], **options)
    assert own[0].token_ids == same[0].token_ids
    assert len({r.token_ids for r in own}) == 3
    free = engine().generate_batch([[1, 2]] * 3, **options)
    assert len({r.token_ids for r in free}) == 3


def test_end_of_text_token_is_returned_and_ends() -> None:
    result = scripted_engine([5, 6, 9, 7], eos_token_ids=(9, 10)).generate([1])
    assert (result.token_ids, result.finish_reason) == ((5, 6, 9), "stop")


def test_end_of_text_token_as_the_last_allowed_one_is_a_stop() -> None:
    result = scripted_engine([5, 9], eos_token_ids=(9,)).generate([1], max_new_tokens=2)
    assert result.finish_reason == "stop"


def test_ignore_eos_goes_on() -> None:
    result = scripted_engine([5, 9, 7], eos_token_ids=(9,)).generate([1], max_new_tokens=4, ignore_eos=True)
    assert (result.token_ids, result.finish_reason) == ((5, 9, 7, 0), "length")


def test_min_new_tokens_puts_off_the_end() -> None:
    backend = FakeBackend(model=lambda prefix, size: np.eye(size, dtype=np.float32)[9] + 0.1)
    result = engine(backend, eos_token_ids=(9,)).generate([1], min_new_tokens=3, max_new_tokens=8)
    assert len(result.token_ids) == 4
    assert 9 not in result.token_ids[:3]
    assert result.token_ids[3] == 9


def test_without_end_of_text_token_it_generates_max_new_tokens() -> None:
    assert len(engine().generate([1], max_new_tokens=50).token_ids) == 50
    assert len(engine(options=GenerationOptions(max_new_tokens=17)).generate([1]).token_ids) == 17


def test_default_length_is_cut_to_what_fits() -> None:
    result = engine(FakeBackend(max_capacity=20), options=GenerationOptions(max_new_tokens=100)).generate(
        [1] * 15
    )
    assert (len(result.token_ids), result.finish_reason) == (5, "length")
    assert len(engine(FakeBackend(max_capacity=20)).generate([1] * 19).token_ids) == 1


def test_sampling_defaults_come_from_the_configuration() -> None:
    options = GenerationOptions(do_sample=True, temperature=0.9, top_k=5)
    defaults = engine(options=options).generate([1], max_new_tokens=20, seed=1)
    explicit = engine().generate([1], max_new_tokens=20, temperature=0.9, top_k=5, seed=1)
    assert defaults.token_ids == explicit.token_ids
    greedy = engine(options=options).generate([1], max_new_tokens=20, do_sample=False)
    assert list(greedy.token_ids) == greedy_reference([1], 20)


def test_numpy_prompts_and_unsigned_ids() -> None:
    expected = engine().generate([1, 2, 3], max_new_tokens=3).token_ids
    for dtype in (np.int32, np.uint16, np.int64):
        assert engine().generate(np.array([1, 2, 3], dtype), max_new_tokens=3).token_ids == expected


REFUSED: list[tuple[Callable[[Engine], object], str]] = [
    (lambda e: e.generate([]), "the prompt is empty"),
    (lambda e: e.generate_batch([[1], []]), "prompt 1 is empty"),
    (lambda e: e.generate_batch([]), "1 to 8 prompts, found 0 prompts"),
    (lambda e: e.generate_batch([[1]] * 9), "1 to 8 prompts, found 9 prompts; split"),
    (lambda e: e.generate_batch("text"), "found a string"),
    (lambda e: e.generate([[1], [2]]), "flat list of integer token ids; several prompts"),  # type: ignore[list-item]
    (lambda e: e.generate([[1], [2, 3]]), "flat list of integer token ids; several prompts"),  # type: ignore[list-item]
    (lambda e: e.generate([1.0]), "flat list of integer"),  # type: ignore[list-item]
    (lambda e: e.generate([True]), "flat list of integer"),
    (lambda e: e.generate([1, 2, 64]), "the prompt: token id 64 at position 2 is outside .* 0 to 63"),
    (lambda e: e.generate_batch([[1], [-1]]), "prompt 1: token id -1 at position 0"),
    (lambda e: e.generate([10**30]), "flat list of integer"),
    (lambda e: e.generate("text"), "no tokenizer"),
    (lambda e: e.generate([1], stop="x"), "no tokenizer"),
    (lambda e: e.chat_prompt([{"role": "user", "content": "x"}]), "no chat template"),
    (lambda e: e.generate([1] * 256), "has 256 tokens, the engine's capacity is 256 .*at most 255"),
    (
        lambda e: e.generate([1] * 200, max_new_tokens=57),
        "has 200 tokens and max_new_tokens asks for 57 more, together 257; the engine's capacity is 256."
        " Ask for at most 56",
    ),
    (lambda e: e.generate([1] * 200, min_new_tokens=57), "min_new_tokens asks for 57"),
    (lambda e: e.generate([1], top_p=0), "top_p must be"),
    (lambda e: e.generate_batch([[1], [2]], seed=[1]), "seed must be one integer, or one for each of the 2"),
    (lambda e: e.stream([]), "the prompt is empty"),  # at the call, not at the first token
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_invalid_requests_are_refused_before_anything_is_computed(
    call: Callable[[Engine], object], message: str
) -> None:
    backend = FakeBackend()
    with pytest.raises(GenerationError, match=message):
        call(engine(backend))
    assert backend.calls == []
    assert backend.caches == []


@pytest.mark.parametrize("call", ["generate", "generate_batch", "stream"])
def test_an_unknown_option_is_answered_with_the_nearest_one(call: str) -> None:
    with pytest.raises(GenerationError, match="no option 'temprature'; did you mean 'temperature'"):
        getattr(engine(), call)([1], temprature=1.0)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_garbage_from_the_engine_is_never_sampled_from(bad: float, at: int) -> None:
    def model(prefix: Sequence[int], vocab_size: int) -> Any:
        logits = hashed_logits(prefix, vocab_size)
        if len(prefix) == 2 + at:
            logits[40] = bad
        return logits

    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(GenerationError, match=f"logit of token 40 after token {1 + at} of prompt 1 "):
            backend = FakeBackend(model=model)
            engine(backend).generate_batch([[1] * 30, [1, 2]], max_new_tokens=9, **options)


def test_timings() -> None:
    timings = engine().generate(list(range(10)), max_new_tokens=5).timings
    assert (timings.prompt_tokens, timings.generated_tokens) == (10, 5)
    assert 0 < timings.prefill_seconds <= timings.time_to_first_token
    assert timings.decode_seconds > 0
    assert timings.prompt_tokens_per_second == pytest.approx(10 / timings.prefill_seconds)
    assert timings.decode_tokens_per_second == pytest.approx(4 / timings.decode_seconds)
    one = engine().generate([1], max_new_tokens=1).timings
    assert one.decode_seconds == one.decode_tokens_per_second == 0


def test_time_of_the_consumer_of_a_stream_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only moves when told: 1 s per engine call, 100 s per event in the consumer."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class SlowBackend(FakeBackend):
        def forward(self, *arguments: Any) -> Any:
            now[0] += 1
            return super().forward(*arguments)

    events = []
    for event in engine(SlowBackend()).stream(list(range(9)), max_new_tokens=4):
        now[0] += 100
        events.append(event)
    result = events[-1].result
    assert result is not None
    assert result.timings.prefill_seconds == result.timings.time_to_first_token == 2
    assert result.timings.decode_seconds == 3
