"""The C ABI as other languages see it: streams, cancelling, closing, forks, the scheduler, refusals."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q2export
from q2export.runtime.cpp import generate as generator
from q2export.version import __version__
from tests.runtime.cpp.binding import (
    Engine,
    Event,
    Library,
    OpenOptions,
    Prompt,
    Q2Error,
    RawResult,
    Scheduler,
    prompt_of,
    result_of,
)

PROMPT = [395, 86, 77, 82]
LONG = {"max_new_tokens": 900, "do_sample": False, "ignore_eos": True}


@pytest.fixture
def engine(library: Library, qwen2_tiny_package: Path) -> Iterator[Engine]:
    opened = library.open(qwen2_tiny_package)
    yield opened
    opened.release()


def test_generated_tables_are_up_to_date() -> None:
    for path, text in generator.files().items():
        assert path.read_text() == text, f"{path}: run python -m q2export.runtime.cpp.generate"


def test_versions(library: Library) -> None:
    assert library.c.q2e_abi_version() == 1
    assert library.c.q2e_version().decode() == __version__


def test_a_stream_gives_what_generate_gives(engine: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "seed": 3, "temperature": 0.8, "logprobs": 2}
    (expected,) = engine.generate([PROMPT], **options)
    stream = engine.stream(PROMPT, **options)
    with pytest.raises(Q2Error, match="argument: the stream has not ended"):
        stream.result()
    assert tuple(stream.tokens()) == expected.token_ids
    assert stream.result() == expected
    assert stream.next() == "end"
    stream.release()


def test_log_probabilities_are_those_of_python(engine: Engine, qwen2_tiny_package: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "logprobs": 3}
    python = q2export.load(qwen2_tiny_package, threads=1)
    expected = python.generate(PROMPT, **options).logprobs
    assert expected is not None
    stream = engine.stream(PROMPT, **options)
    for one in expected:
        event = stream.next()
        assert isinstance(event, Event) and event.top_count == 3
        assert event.logprob == pytest.approx(one.logprob, abs=1e-5)
        assert [event.top_token_ids[i] for i in range(3)] == [token for token, _ in one.top]
        assert event.top_logprobs[0] == pytest.approx(one.top[0][1], abs=1e-5)
    stream.release()


def test_a_callback_sees_every_token_and_may_cancel(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []

    def take(event: Event) -> bool:
        seen.append((event.prompt, event.token_id))
        return len(seen) < 30

    results = engine.generate([PROMPT, [7]], take, max_new_tokens=5, do_sample=False)
    for index, result in enumerate(results):
        assert tuple(token for prompt, token in seen if prompt == index) == result.token_ids
    with pytest.raises(Q2Error, match="cancelled: the generation was cancelled"):
        engine.generate([PROMPT, [7]], take, **LONG)
    assert len(seen) >= 30


def test_a_stream_is_cancelled_from_another_thread(engine: Engine) -> None:
    stream = engine.stream(PROMPT, **LONG)
    assert isinstance(stream.next(), Event)
    waiter = threading.Timer(0.02, stream.cancel)
    waiter.start()
    with pytest.raises(Q2Error, match="cancelled"):
        stream.tokens()
    waiter.join()
    stream.release()


def test_closing_ends_what_runs(engine: Engine) -> None:
    streams = [engine.stream(PROMPT, **LONG) for _ in range(2)]
    ended: list[str] = []

    def run(stream: Any) -> None:
        try:
            stream.tokens()
        except Q2Error as error:
            ended.append(error.status)

    threads = [threading.Thread(target=run, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    engine.close()
    for thread in threads:
        thread.join()
    assert ended == ["closed", "closed"]
    with pytest.raises(Q2Error, match=r"closed: .*the engine is closed; open the package again"):
        engine.generate([PROMPT], max_new_tokens=1)
    engine.close()
    for stream in streams:
        stream.release()


def test_a_child_process_does_not_use_its_parents_engine(engine: Engine, qwen2_tiny_package: Path) -> None:
    scheduler = Scheduler(engine)
    stream = engine.stream(PROMPT, **LONG)
    assert isinstance(stream.next(), Event)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine.generate([PROMPT], max_new_tokens=2)
        except Q2Error as error:
            own = engine.library.open(qwen2_tiny_package)
            tokens = own.generate([PROMPT], max_new_tokens=3, do_sample=False)[0].token_ids
            own.release()
            stream.release()
            scheduler.release()
            engine.release()
            forked = "before this process was forked; open it again here" in error.message
            code = 0 if forked and len(tokens) == 3 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(stream.next(), Event)
    stream.release()
    scheduler.release()


def test_requests_share_steps_and_get_the_tokens_they_get_alone(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    requests = []
    for number in range(14):
        prompt = [int(token) for token in rng.integers(0, 1500, int(rng.integers(1, 400)))]
        options: dict[str, Any] = {
            "max_new_tokens": int(rng.integers(1, 40)),
            "seed": number,
            "temperature": 1.1,
        }
        requests.append((prompt, options))
    alone = [engine.generate([prompt], **options)[0].token_ids for prompt, options in requests]
    scheduler = Scheduler(engine, rows=5, capacity=500)
    streams = []
    waiting = list(requests)
    while waiting or scheduler.step() is not None:
        for prompt, options in waiting[:2]:  # some come while others run
            streams.append(scheduler.submit(prompt, **options))
        del waiting[:2]
    assert [tuple(stream.tokens()) for stream in streams] == alone
    for stream in streams:
        stream.release()
    scheduler.release()


def test_the_scheduler_cancels_closes_and_is_full(engine: Engine) -> None:
    scheduler = Scheduler(engine, rows=1, max_waiting=2)
    assert scheduler.step(timeout_ms=1) is None
    first = scheduler.submit(PROMPT, **LONG)
    assert scheduler.step() == 1
    second, third = scheduler.submit(PROMPT, **LONG), scheduler.submit([5], max_new_tokens=2)
    with pytest.raises(Q2Error, match="queue full: 2 requests are waiting already"):
        scheduler.submit(PROMPT)
    assert second.next(timeout_ms=1) == "timeout"
    first.cancel()
    second.release()
    while scheduler.step():
        pass
    assert len(third.tokens()) == 2
    with pytest.raises(Q2Error, match="cancelled"):
        while first.next(0) != "timeout":
            pass
    last = scheduler.submit(PROMPT, **LONG)
    scheduler.close()
    for use in (last.tokens, scheduler.step, lambda: scheduler.submit(PROMPT)):
        with pytest.raises(Q2Error, match="closed: the scheduler is closed"):
            use()
    with pytest.raises(Q2Error, match="generation: capacity of 1099511627776 tokens is out of range"):
        Scheduler(engine, capacity=1 << 40)
    for stream in (first, third, last):
        stream.release()
    scheduler.release()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "the prompt is empty"),
        (
            [[1], [-1]],
            {},
            r"prompt 1: token id -1 at position 0 is outside the vocabulary of the engine, 0 to 1535",
        ),
        ([[1536]], {}, "token id 1536"),
        ([[1]] * 9, {}, "this engine takes a batch of 1 to 8 prompts, found 9"),
        ([], {}, "found 0"),
        ([[1]], {"tempature": 1.0}, "no option 'tempature'; did you mean 'temperature'?"),
        ([[1]], {"temperature": -1.0}, "temperature must be a number of at least 0, found -1"),
        ([[1]], {"temperature": float("nan")}, "temperature must be a number"),
        ([[1]], {"top_p": 0.0}, "top_p must be a number above 0 and at most 1, found 0"),
        ([[1]], {"top_k": True}, "top_k must be an integer of at least 0, found true"),
        ([[1]], {"max_new_tokens": 2000}, "asks for 2000 more"),
        ([[1] * 1024], {}, "has 1024 tokens, the engine's capacity is 1024 for prompt and new tokens"),
        (
            [[1], [1]],
            {"seed": [1, 2, 3]},
            "seed must be one integer, or one for each of the 2 prompts, found 3",
        ),
        ([[1]], {"seed": -1}, "seed must be an integer of at least 0"),
        ([[1]], {"logit_bias": {1536: 1.0}}, "logit_bias: token id 1536 is outside"),
        ([[1]], {"logit_bias": {1: 101.0}}, "logit_bias must be a mapping of token ids to numbers"),
        ([[1]], {"stop": [""]}, "stop must be a string or a sequence of strings, none of them empty"),
        ([[1]], {"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens must be at most max_new_tokens"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(
    engine: Engine, prompts: list[list[int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Q2Error) as caught:
        engine.generate(prompts, **options)
    assert caught.value.status == "generation"
    assert message in caught.value.message or pytest.fail(caught.value.message)


def test_structures_of_later_versions_are_understood(engine: Engine) -> None:
    """A caller's structures may have grown at their ends; results are filled as far as the library knows."""

    class LaterPrompt(ctypes.Structure):
        _fields_ = (("prompt", Prompt), ("added", ctypes.c_uint64))

    class LaterResult(ctypes.Structure):
        _fields_ = (("result", RawResult), ("added", ctypes.c_uint64))

    made = [prompt_of(ids) for ids in (PROMPT, [5, 6])]
    later = (LaterPrompt * 2)(*(LaterPrompt(prompt, 1 << 63) for prompt in made))
    for each in later:
        each.prompt.size = ctypes.sizeof(LaterPrompt)
    results, options = ctypes.c_void_p(), engine.options({"max_new_tokens": 6, "do_sample": False})
    engine.library.call(
        "q2e_generate", engine.handle, later, ctypes.c_size_t(2), options, None, None, ctypes.byref(results)
    )
    expected = engine.generate([PROMPT, [5, 6]], max_new_tokens=6, do_sample=False)
    for index in range(2):
        raw = LaterResult(RawResult(ctypes.sizeof(LaterResult)), 7)
        engine.library.call("q2e_results_get", results, ctypes.c_size_t(index), ctypes.byref(raw))
        assert result_of(raw.result) == expected[index]
        assert raw.added == 7
    engine.library.c.q2e_results_release(results)
    engine.library.c.q2e_options_release(options)
    with pytest.raises(Q2Error, match=r"argument: q2e_event\.size must be sizeof\(q2e_event\), found 8"):
        stream = engine.stream(PROMPT)
        engine.library.call("q2e_stream_next", stream.handle, ctypes.c_int64(0), ctypes.byref(Event(8)))


def test_wrong_calls_are_refused(library: Library, engine: Engine, qwen2_tiny_package: Path) -> None:
    handle = ctypes.c_void_p()
    for package, size, status in (
        (None, 32, "argument"),
        (b"/p", 1, "argument"),
        (b"/nothing", 0, "package"),
    ):
        options = OpenOptions(size, 0, 1, None, None)
        given = ctypes.byref(options) if size else None
        with pytest.raises(Q2Error) as caught:
            library.call("q2e_engine_open", package, given, ctypes.byref(handle))
        assert caught.value.status == status
        assert not handle
    assert library.c.q2e_engine_open(None, None, None, None) == 3  # no place for a message
    with pytest.raises(Q2Error, match="argument: q2e_prompt must not be NULL"):
        library.call(
            "q2e_generate", engine.handle, None, ctypes.c_size_t(1), None, None, None, ctypes.byref(handle)
        )
    with pytest.raises(Q2Error, match="package: threads must be an integer from 0"):
        library.open(qwen2_tiny_package, threads=4096)
    for name in ("engine", "stream", "options", "results", "scheduler", "error"):
        getattr(library.c, f"q2e_{name}_release")(None)
