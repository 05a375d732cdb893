"""What is left for weights beside scratch memory and the largest cache; no graph over streamed ones."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from q2export.errors import PackageError
from q2export.runtime.backends.cuda.backend import CudaBackend
from q2export.runtime.backends.tensorrt.executor import make_backend
from q2export.runtime.backends.tensorrt.weight_streaming import RESERVED_BYTES, limit_weights
from q2export.runtime.engine import Engine
from tests.runtime.fakes import FakeBackend
from tests.runtime.tensorrt.fakes import (
    DECODE,
    HEAD_DIM,
    HEADS,
    LAYERS,
    PREFILL,
    TRT,
    VOCAB,
    FakeCuda,
    FakeEngine,
    engine_info,
    loaded,
)

STREAMABLE = 1_000_000
CACHE = 2 * LAYERS * 4 * HEADS * 64 * HEAD_DIM * 4  # of 4 rows of 64 tokens, float32
SCRATCH = 2 * 1000 + 5000  # of the larger profile, with what staging takes


def make(room: int) -> tuple[CudaBackend, FakeCuda, FakeEngine]:
    """A GPU with ``room`` bytes beside the reserve."""
    cuda = FakeCuda(RESERVED_BYTES + room)
    engine = FakeEngine(cuda, [PREFILL, DECODE], streamable=STREAMABLE)
    return make_backend(engine_info(), loaded(engine, [PREFILL, DECODE]), cuda, TRT), cuda, engine


def generated(backend: Any) -> list[int]:
    return list(Engine(backend).generate([3, 1, 4, 1, 5], max_new_tokens=10, do_sample=False).token_ids)


def test_the_budget_leaves_room_for_scratch_and_the_largest_cache(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backend, cuda, engine = make(room=600_000)
    inputs = 4 * 8 * 8 + 2 * 256 + 4 * 8 * 8  # ids, two lengths, positions; 256 bytes each at least
    logits = -(-4 * VOCAB * 4 // 256) * 256 + -(-4 * 8 * VOCAB * 4 // 256) * 256
    assert engine.weight_streaming_budget_v2 == 600_000 - SCRATCH - CACHE - inputs - logits
    assert "of 0.00 GB of weights stay in host memory" in caplog.text
    cache = backend.new_cache(4, 64)
    ids = np.ones((4, 8), np.int64)
    every = np.tile(np.arange(8), (4, 1))
    assert backend.forward(cache, ids, np.zeros(4, np.int64), np.full(4, 8), every).shape == (4, 8, VOCAB)
    assert cuda.free_memory() >= 0


def test_steps_over_streamed_weights_are_not_captured() -> None:
    backend, cuda, _ = make(room=600_000)
    reference = FakeBackend(vocab_size=VOCAB, max_batch=4, max_capacity=64)
    assert generated(backend) == generated(reference)
    assert (cuda.count("capture"), cuda.count("launch")) == (0, 0)


def test_weights_that_all_have_room_are_not_streamed() -> None:
    backend, cuda, engine = make(room=2_000_000)
    assert engine.weight_streaming_budget_v2 == STREAMABLE
    generated(backend)
    assert cuda.count("capture") == 1


def test_a_gpu_too_small_for_the_largest_cache_streams_all_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        backend, _, engine = make(room=30_000)
    assert engine.weight_streaming_budget_v2 == 0
    assert "lacks 0.00 GB for the largest batch and capacity" in caplog.text
    backend.new_cache(1, 8)


def test_a_budget_the_engine_does_not_take_is_refused() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, [PREFILL], streamable=STREAMABLE)
    engine.create_execution_context("user managed")
    with pytest.raises(PackageError, match=r"refuses a budget of 0 bytes .* of which 1,000,000"):
        limit_weights(engine, FakeCuda(RESERVED_BYTES), 0)


def test_an_engine_without_streamable_weights_is_left_alone() -> None:
    cuda = FakeCuda(0)
    assert limit_weights(FakeEngine(cuda, [PREFILL]), cuda, 1 << 40) is False
