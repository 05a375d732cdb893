from __future__ import annotations

import numpy as np
import pytest

from q2export.compare.verify.backend_probe import BackendProbe
from q2export.errors import ParityError
from tests.runtime.fakes import FakeBackend, hashed_logits


def test_scores_and_greedy_tokens_go_through_the_cache() -> None:
    backend = FakeBackend(vocab_size=23, prefill_chunk=4)
    probe = BackendProbe(lambda: backend)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    expected = [hashed_logits(tokens[: end + 1], 23) for end in range(len(tokens))]
    assert (probe.score(tokens) == np.array(expected)).all()
    assert [width for _, width, _ in backend.calls] == [4, 3]
    sequence = list(tokens)
    for _ in range(5):
        sequence.append(int(hashed_logits(sequence, 23).argmax()))
    assert probe.greedy(tokens, 5) == sequence[len(tokens) :]


def test_it_exposes_nothing() -> None:
    probe = BackendProbe(FakeBackend)
    assert probe.points() == []
    assert probe.capture([1], []) == {}
    with pytest.raises(ParityError, match=r"no intermediate tensors, model\.norm asked for"):
        probe.capture([1], ["model.norm"])
