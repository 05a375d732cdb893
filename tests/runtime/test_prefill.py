from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.runtime.prefill import plan_prefill, prefill
from tests.runtime.fakes import FakeBackend, hashed_logits


def test_one_short_prompt_is_one_call() -> None:
    assert plan_prefill([5], 512) == [(1, 5, 0)]
    assert plan_prefill([512], 512) == [(1, 512, 0)]


def test_one_long_prompt_is_fed_in_full_chunks_after_the_rest() -> None:
    assert plan_prefill([1200], 512) == [(1, 1200, 1024), (1, 1024, 512), (1, 512, 0)]


def test_equal_prompts_share_every_call() -> None:
    assert plan_prefill([100] * 4, 512) == [(4, 100, 0)]


def test_short_prompts_join_a_long_one_in_its_last_call() -> None:
    calls = plan_prefill([2000, 20, 20, 20], 512)
    assert calls[-1] == (4, 20, 0)
    assert all(call.rows == 1 for call in calls[:-1])


def test_nearly_equal_prompts_are_padded_rather_than_split() -> None:
    assert plan_prefill([103, 102, 101, 100], 512) == [(4, 103, 0)]


lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(lambda n: sorted(n, reverse=True))


@given(lengths_strategy, st.integers(1, 20))
def test_every_token_is_fed_once_in_order_and_all_prompts_end_together(
    lengths: list[int], chunk: int
) -> None:
    fed = [0] * len(lengths)
    calls = plan_prefill(lengths, chunk)
    for rows, far, near in calls:
        assert 0 < far - near <= chunk
        for row in range(rows):
            assert lengths[row] > near
            assert fed[row] == max(lengths[row] - far, 0)
            fed[row] = lengths[row] - near
        assert all(length <= near for length in lengths[rows:])
    assert fed == lengths
    assert calls[-1].near == 0
    assert calls[-1].rows == len(lengths)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("lengths", [[1], [9], [9, 9], [23, 4, 4, 1], [40, 39, 17, 2, 1]])
def test_last_logits_do_not_depend_on_the_chunk(lengths: list[int], chunk: int) -> None:
    backend = FakeBackend(prefill_chunk=chunk)
    random = np.random.default_rng(sum(lengths))
    prompts = [random.integers(0, backend.vocab_size, n) for n in lengths]
    logits = prefill(backend, backend.new_cache(len(prompts), max(lengths)), prompts)
    np.testing.assert_array_equal(logits, [hashed_logits(p.tolist(), backend.vocab_size) for p in prompts])
    assert [asked for _, _, asked in backend.calls] == [0] * (len(backend.calls) - 1) + [1]
