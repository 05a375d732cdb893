from __future__ import annotations

import numpy as np

from q2export.compare.verify.engine_probe import EngineProbe
from tests.runtime.fakes import FakeBackend, hashed_logits


def test_scores_and_greedy_tokens_go_through_the_cache() -> None:
    backend = FakeBackend(vocab_size=23, prefill_chunk=4)
    probe = EngineProbe(lambda: backend)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    expected = [hashed_logits(tokens[: end + 1], 23) for end in range(len(tokens))]
    assert (probe.score(tokens) == np.array(expected)).all()
    assert [width for _, width, _ in backend.calls] == [4, 3]
    sequence = list(tokens)
    for _ in range(5):
        sequence.append(int(hashed_logits(sequence, 23).argmax()))
    assert probe.greedy(tokens, 5) == sequence[len(tokens) :]
