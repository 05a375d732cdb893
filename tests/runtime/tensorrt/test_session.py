"""The backend on a fake GPU whose engine hashes what it finds in its cache: any wrong address shows."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from q2export.errors import GenerationError
from q2export.runtime.backends.cuda.backend import CudaBackend
from q2export.runtime.backends.tensorrt.executor import make_backend
from q2export.runtime.engine import Engine
from q2export.runtime.scheduler import Scheduler
from tests.runtime.fakes import FakeBackend, hashed_logits
from tests.runtime.tensorrt.fakes import (
    DECODE,
    HEAD_DIM,
    HEADS,
    PREFILL,
    TRT,
    VOCAB,
    FakeCuda,
    FakeEngine,
    engine_info,
    loaded,
    ranges,
)


def make(
    limits: list[dict[str, Any]] | None = None, *, capturable: bool = True, limit: int = 1 << 30, **info: Any
) -> tuple[CudaBackend, FakeCuda, FakeEngine]:
    limits = limits or [PREFILL, DECODE]
    cuda = FakeCuda(limit)
    engine = FakeEngine(cuda, limits, capturable)
    return make_backend(engine_info(**info), loaded(engine, limits), cuda, TRT), cuda, engine


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def reference(sequence: Sequence[int]) -> Any:
    return np.array([hashed_logits(sequence[: end + 1], VOCAB) for end in range(len(sequence))])


NARROW = [ranges((1, 4), (4, 6), (2, 3), (16, 64)), ranges((1, 4), (1, 1), (1, 1), (16, 64))]
"""A prefill that takes at least 4 tokens and at most 3 logits, and caches of at least 16 tokens."""


@pytest.mark.parametrize("limits", [[PREFILL, DECODE], [DECODE, PREFILL], [PREFILL], NARROW])
def test_generation_is_that_of_the_reference(limits: list[dict[str, Any]]) -> None:
    backend, _, _ = make(limits)
    prompts = [tokens(1, 19), tokens(2, 1), tokens(3, 8), tokens(4, 5)]
    limit = {"max_new_tokens": 12, "do_sample": False}
    for count in (1, 3, 4):
        fake = FakeBackend(vocab_size=VOCAB, max_batch=4, max_capacity=64)
        expected = Engine(fake).generate_batch(prompts[:count], **limit)
        actual = Engine(backend).generate_batch(prompts[:count], **limit)
        assert [one.token_ids for one in actual] == [one.token_ids for one in expected]


def test_rows_that_end_early_are_replaced_by_the_last() -> None:
    backend, cuda, _ = make()
    prompts = [tokens(seed, 6) for seed in range(4)]
    engine = Engine(backend)
    alone = [engine.generate(prompt, max_new_tokens=30, do_sample=False).token_ids for prompt in prompts]
    # Row 1 ends at its third token, row 0 later: rows 3 and 2 are moved.
    stop_ids = {alone[1][2], alone[0][5]}
    cuda.calls.clear()
    from q2export.runtime.generation_config import GenerationDefaults

    engine.defaults = GenerationDefaults(eos_token_ids=tuple(stop_ids))
    results = engine.generate_batch(prompts, max_new_tokens=30, do_sample=False)
    for result, full in zip(results, alone, strict=True):
        ends = [place for place, token in enumerate(full) if token in stop_ids]
        assert result.token_ids == full[: ends[0] + 1 if ends else 30]
    assert cuda.count("copy_strided") >= 2 * 3


@pytest.mark.parametrize("limits", [[PREFILL, DECODE], NARROW])
def test_scores_of_every_position(limits: list[dict[str, Any]]) -> None:
    backend, _, _ = make(limits)
    sequence = tokens(5, 29)
    assert (Engine(backend).score(sequence) == reference(sequence)).all()


@pytest.mark.parametrize("limits", [[PREFILL, DECODE], NARROW])
@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_ragged_step_of_any_width_and_any_positions(limits: list[dict[str, Any]], width: int) -> None:
    """Also wider than any profile takes, with positions in any order and several times."""
    backend, _, engine = make(limits)
    rng = np.random.default_rng(width)
    sequences = [tokens(seed, 30) for seed in (6, 7, 8)]
    cache = backend.new_cache(4, 40)
    past = np.zeros(3, np.int64)
    for asked in (0, 1, 3, 11):
        query = np.array([width, max(1, width - 3), 1])
        ids = np.zeros((3, width), np.int64)
        for row in range(3):
            ids[row, : query[row]] = sequences[row][: query[row]]
        indices = rng.integers(0, query[:, None], (3, asked))
        logits = backend.forward(cache, ids, past, query, indices)
        assert logits.shape == (3, asked, VOCAB)
        for row in range(3):
            assert (logits[row] == reference(sequences[row])[indices[row]]).all()
    assert {step["input_ids"][0] for context in engine.contexts for step in context.steps} == {3}


def test_padding_is_answered_by_the_last_token() -> None:
    backend, _, _ = make()
    ids = np.array([[4, 5, 0], [6, 7, 8]])
    zero = np.zeros(2, np.int64)
    logits = backend.forward(backend.new_cache(2, 8), ids, zero, np.array([2, 3]), np.array([[2], [2]]))
    assert (logits[0, 0] == hashed_logits([4, 5], VOCAB)).all()


def test_decode_is_captured_at_its_second_step_and_replayed() -> None:
    backend, cuda, engine = make()
    Engine(backend).generate(tokens(9, 5), max_new_tokens=10, do_sample=False)
    # prefill, two plain decode steps, the second of which is captured behind its run, and seven launches
    assert (cuda.count("capture"), cuda.count("launch")) == (1, 7)
    prefill, decode = engine.contexts
    assert [step["input_ids"] for step in prefill.steps] == [(1, 5)]
    assert {step["input_ids"] for step in decode.steps} == {(1, 1)}
    assert len(decode.steps) == 9


def test_an_engine_that_cannot_be_captured_runs_without_graphs() -> None:
    backend, cuda, _ = make(capturable=False)
    Engine(backend).generate(tokens(9, 5), max_new_tokens=10, do_sample=False)
    assert (cuda.count("capture"), cuda.count("launch")) == (0, 0)


def test_memory_and_graphs_are_kept_for_requests_of_any_length() -> None:
    backend, cuda, _ = make()
    engine = Engine(backend)
    engine.generate(tokens(1, 5), max_new_tokens=10, do_sample=False)
    gc.collect()
    cuda.calls.clear()
    for length, new in ((6, 9), (6, 40), (20, 3)):
        result = engine.generate(tokens(2, length), max_new_tokens=new, do_sample=False)
        assert len(result.token_ids) == new
        gc.collect()
    engine.generate_batch([tokens(3, 5), tokens(4, 7)], max_new_tokens=5, do_sample=False)
    assert [cuda.count(name) for name in ("allocate", "free", "destroy_graph", "capture")] == [0, 0, 0, 1]
    assert len(cuda.device_memory) == 1 + 3  # scratch; arena, inputs and logits


def test_caches_at_once_have_rows_of_one_arena() -> None:
    """Of four rows two, one and one; the fifth has memory of its own, which is freed for another shape."""
    backend, cuda, engine = make()
    ids, one = np.array([[7]]), np.ones(1, np.int64)

    def first_key(cache: Any) -> int:
        backend.forward(cache, ids, one * 0, one, np.array([[0]]))
        return int(engine.contexts[1].addresses["past_key.0"])

    row = HEADS * 64 * HEAD_DIM * 4
    caches = [backend.new_cache(2, 8), backend.new_cache(1, 64), backend.new_cache(1, 9)]
    begin = first_key(caches[0])
    assert [first_key(cache) - begin for cache in caches] == [0, 2 * row, 3 * row]
    allocated = len(cuda.device_memory)
    own = backend.new_cache(1, 8)
    assert engine.contexts[1].shapes["past_key.0"] == (1, HEADS, 64, HEAD_DIM)
    assert not begin <= first_key(own) < begin + 4 * row
    assert engine.contexts[1].shapes["past_key.0"] == (1, HEADS, 8, HEAD_DIM)
    assert len(cuda.device_memory) == allocated + 3
    del caches[1], own
    gc.collect()
    assert first_key(backend.new_cache(1, 30)) - begin == 2 * row
    assert len(cuda.device_memory) == allocated + 3  # kept for a cache of its shape
    held = backend.new_cache(1, 5)  # row 2 again
    other = backend.new_cache(2, 16)
    assert len(cuda.device_memory) == allocated + 3  # in place of it
    del held, other


def test_rows_of_a_cache_that_does_not_begin_the_arena_are_moved_within_it() -> None:
    backend, _, _ = make()
    held, cache = backend.new_cache(2, 16), backend.new_cache(2, 16)
    two, zero = np.full(2, 2), np.zeros(2, np.int64)
    for one, ids in ((held, [[1, 2], [3, 4]]), (cache, [[5, 6], [7, 8]])):
        backend.forward(one, np.array(ids), zero, two, np.array([[1], [1]]))
    cache.copy_row(1, 0, 2)
    ids, one = np.array([[9]]), np.ones(1, np.int64)
    for moved, begun in ((cache, [7, 8]), (held, [1, 2])):
        logits = backend.forward(moved, ids, one * 2, one, np.array([[0]]))
        assert (logits[0, 0] == hashed_logits([*begun, 9], VOCAB)).all()


def test_requests_of_a_scheduler_are_what_they_are_alone() -> None:
    """Prompts are computed in rows behind those that generate, whose steps are replayed."""
    backend, cuda, _ = make()
    engine = Engine(backend)
    prompts = [tokens(seed, 3 + seed) for seed in range(9)]
    alone = [engine.generate(prompt, max_new_tokens=12, do_sample=False) for prompt in prompts]
    with Scheduler(engine) as scheduler:
        several = [scheduler.submit(prompt, max_new_tokens=12, do_sample=False) for prompt in prompts]
        assert [each.result().token_ids for each in several] == [each.token_ids for each in alone]
        assert scheduler.statistics().kv_tokens == 4 * 64
    assert cuda.count("launch") > 0


def test_two_caches_at_once_do_not_meet() -> None:
    backend, _, _ = make()
    engine = Engine(backend)
    streams = [engine.stream(tokens(seed, 4), max_new_tokens=9, do_sample=False) for seed in (1, 2)]
    drawn = [[event.token_id for event in pair] for pair in zip(*streams, strict=True)]
    alone = [engine.generate(tokens(seed, 4), max_new_tokens=9, do_sample=False) for seed in (1, 2)]
    assert [list(column) for column in zip(*drawn, strict=True)] == [list(one.token_ids) for one in alone]


def test_everything_is_freed_with_the_backend() -> None:
    backend, cuda, engine = make()
    Engine(backend).generate(tokens(1, 5), max_new_tokens=10, do_sample=False)
    Engine(backend).score(tokens(1, 8))
    del backend
    engine.contexts.clear()
    gc.collect()
    assert (cuda.device_memory, cuda.host_memory, cuda.graphs) == ({}, {}, {})


def test_a_cache_beyond_the_engine_is_refused() -> None:
    backend, _, _ = make()
    with pytest.raises(GenerationError, match=r"batch 5 is out of range.*1 to 4.*batch.max=5"):
        backend.new_cache(5, 8)
    with pytest.raises(GenerationError, match=r"capacity 65 is out of range.*1 to 64"):
        backend.new_cache(1, 65)


def test_a_cache_for_which_there_is_no_memory_is_refused_and_leaves_nothing() -> None:
    backend, cuda, _ = make(limit=20_000)
    before = dict(cuda.device_memory)
    with pytest.raises(GenerationError, match=r"KV cache of 4 x 64 tokens takes 0.00 GB.*cudaMalloc of"):
        backend.new_cache(4, 64)
    assert cuda.device_memory == before
    backend.new_cache(1, 8)


def test_every_call_is_about_the_gpu_of_the_engine() -> None:
    """Whatever GPU the thread is on: other libraries change that, and every thread begins on the first."""
    backend, cuda, _ = make()
    cuda.is_current = False
    prompts = [tokens(seed, 6) for seed in range(3)]
    results = Engine(backend).generate_batch(prompts, max_new_tokens=8, do_sample=False)
    assert [len(one.token_ids) for one in results] == [8, 8, 8]
    cache = backend.new_cache(2, 8)
    cache.copy_row(1, 0, 3)
    del cache, backend
    gc.collect()
    assert (cuda.device_memory, cuda.is_current) == ({}, False)
