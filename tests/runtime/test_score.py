from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q2export.errors import GenerationError
from q2export.runtime import engine as engine_module
from q2export.runtime.engine import Engine
from tests.runtime.fakes import FakeBackend, hashed_logits


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("length", [1, 4, 5, 29])
def test_score_equals_the_reference_at_every_position(length: int, chunk: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 64, length).tolist()
    logits = Engine(FakeBackend(prefill_chunk=chunk)).score(tokens)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [hashed_logits(tokens[: i + 1], 64) for i in range(length)])


def test_logits_are_asked_for_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_SCORE_PIECE_BYTES", 5 * 64 * 4 + 3)
    backend = FakeBackend(prefill_chunk=8)
    logits = Engine(backend).score(list(range(17)))
    assert backend.calls == [(1, 5, 5), (1, 5, 5), (1, 5, 5), (1, 2, 2)]
    assert logits.shape == (17, 64)
    assert backend.caches[0].capacity == 17


def test_a_vocabulary_larger_than_a_piece_is_scored_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_SCORE_PIECE_BYTES", 10)
    backend = FakeBackend()
    Engine(backend).score([1, 2, 3])
    assert [width for _, width, _ in backend.calls] == [1, 1, 1]


def test_pieces_joined_are_the_score() -> None:
    runner = Engine(FakeBackend())
    tokens = list(range(20))
    np.testing.assert_array_equal(np.concatenate(list(runner.score_pieces(tokens))), runner.score(tokens))


def test_capacity_itself_can_be_scored() -> None:
    assert Engine(FakeBackend(max_capacity=9)).score([1] * 9).shape == (9, 64)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "the sequence is empty"),
        ([1] * 10, "the sequence has 10 tokens, the engine's capacity is 9"),
        ([64], "token id 64 at position 0"),
        ("text", "flat list of integer"),
    ],
)
def test_refused(tokens: Any, message: str) -> None:
    runner = Engine(FakeBackend(max_capacity=9))
    with pytest.raises(GenerationError, match=message):
        runner.score(tokens)
    with pytest.raises(GenerationError, match=message):
        runner.score_pieces(tokens)


def test_logits_that_are_not_finite_are_refused() -> None:
    def model(prefix: Any, vocab_size: int) -> Any:
        return np.full(vocab_size, np.nan if len(prefix) == 3 else 0, np.float32)

    with pytest.raises(GenerationError, match="nan as the logit of token 0 after token 2"):
        Engine(FakeBackend(model=model)).score([1, 2, 3, 4])
