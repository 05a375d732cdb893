from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.errors import GenerationError
from q2export.runtime.logprobs import token_logprobs
from q2export.runtime.options import GenerationOptions
from q2export.runtime.sampling import (
    Sampler,
    apply_count_penalties,
    apply_repetition_penalty,
    candidates,
    check_finite,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def drawing(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, penalty: float = 1.0
) -> GenerationOptions:
    return GenerationOptions(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )


def reference(logits: np.ndarray, prompt: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """Probabilities by transformers' own processors, in its own order."""
    from transformers.generation import logits_process as hf

    steps = hf.LogitsProcessorList()
    if options.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    steps.append(hf.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        steps.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(hf.MinPLogitsWarper(options.min_p))
    scores = steps(torch.from_numpy(prompt[None]), torch.from_numpy(logits[None].copy()))
    return np.asarray(scores.double().softmax(-1)[0])


def probabilities(logits: np.ndarray, prompt: np.ndarray, options: GenerationOptions) -> np.ndarray:
    logits = logits.copy()
    apply_repetition_penalty(logits, prompt, options.repetition_penalty)
    token_ids, weights = candidates(logits, options)
    assert len(set(token_ids.tolist())) == len(token_ids)
    assert weights.max() == 1
    result = np.zeros(logits.size)
    result[token_ids] = weights / weights.sum()
    return result


CASES = [
    drawing(),
    drawing(0.7, 20, 0.8, 0.0, 1.05),  # Qwen2 instruct
    drawing(1.3, 50, 0.95, 0.05, 1.0),
    drawing(0.9, 0, 0.9, 0.0, 1.2),
    drawing(1.0, 0, 0.3, 0.0, 0.8),
    drawing(2.0, 0, 0.999, 0.0, 1.0),
    drawing(1.0, 1),
    drawing(1.0, 10_000),
    drawing(1.0, 0, 1.0, 0.1),
    drawing(1.0, 0, 1.0, 1.0),
    drawing(0.01, 5, 0.5, 0.5, 3.0),
    drawing(1.0, 0, 1e-6),
]


@pytest.mark.parametrize("vocab_size", [7, 1021])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_probabilities_equal_those_of_transformers(options: GenerationOptions, vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    for scale in (0.5, 3.0, 8.0):
        logits = (random.standard_normal(vocab_size) * scale).astype(np.float32)
        prompt = random.integers(0, vocab_size, 11)
        expected = reference(logits, prompt, options)
        found = probabilities(logits, prompt, options)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_real_vocabulary_equals_transformers(scale: float) -> None:
    """A nearly flat distribution needs most of the vocabulary sorted, a peaked one very little."""
    logits = (np.random.default_rng(1).standard_normal(151_936) * scale).astype(np.float32)
    prompt = np.arange(5)
    for options in (drawing(0.7, 20, 0.8, 0.0, 1.05), drawing(top_p=0.8)):
        expected, found = reference(logits, prompt, options), probabilities(logits, prompt, options)
        # float32 running sums over a whole vocabulary put transformers' own border a few tokens off
        assert abs(int((found > 0).sum()) - int((expected > 0).sum())) <= 0.001 * (expected > 0).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


def test_ties_at_the_border_of_top_k_stay_as_in_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    token_ids, weights = candidates(logits, drawing(top_k=2))
    assert token_ids.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(weights, [1, *[math.exp(-1)] * 3])


def test_top_p_closed_form() -> None:
    """Probabilities 0.5, 0.25, 0.125, 0.125: 0.5 is reached by one token, anything above needs the next."""
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25])).astype(np.float32)
    for top_p, kept in ((0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [1, 3, 0])):
        assert candidates(logits, drawing(top_p=top_p))[0].tolist() == kept


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = np.array([-50, 3, 2.999, 40], np.float32)
    weights = candidates(logits, drawing(temperature))[1]
    assert np.isfinite(weights).all()
    assert weights.tolist() == ([0, 0, 0, 1] if temperature < 1 else [1, 1, 1, 1])


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.array([1, 5, 5, 2], np.float32)
    assert Sampler(GenerationOptions(), np.array([0])).choose(logits) == 1
    assert Sampler(drawing(0), np.array([0]), seed=3).choose(logits) == 1


def test_penalty_covers_prompt_and_generated_tokens_once() -> None:
    logits = np.array([4.0, 3.0, 2.5, -1.0], np.float32)
    before = logits.copy()
    sampler = Sampler(GenerationOptions(repetition_penalty=1.5), np.array([0, 0, 3]))
    # 0: 4/1.5 = 2.67 < 3, so 1; then 1: 3/1.5 = 2 < 2.67, so 0; 2.5 stays below 2.67
    assert [sampler.choose(logits) for _ in range(3)] == [1, 0, 0]
    np.testing.assert_array_equal(logits, before)
    penalized = logits.copy()
    apply_repetition_penalty(penalized, np.array([3, 3]), 2.0)
    assert penalized.tolist() == [4, 3, 2.5, -2]


def test_forbidden_first_tokens() -> None:
    logits = np.array([9.0, 8.0, 1.0], np.float32)
    for shape in (GenerationOptions(), drawing(0.01)):
        options = replace(shape, min_new_tokens=2)
        sampler = Sampler(options, np.array([2]), 0, forbidden_first=(0, 1))
        assert [sampler.choose(logits) for _ in range(3)] == [2, 2, 0]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4])).astype(np.float32)
    sampler = Sampler(drawing(), np.array([0]), seed=0)
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.3, 0.4], atol=0.03)  # 4 standard deviations


def test_same_seed_same_draws() -> None:
    logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(drawing(), np.array([0]), seed)
        return [sampler.choose(logits) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20),
    st.integers(0, 25),
    st.floats(1e-3, 1),
    st.floats(0, 1),
    st.floats(1e-3, 10),
)
def test_the_likeliest_token_always_stays(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = np.array(values, np.float32)
    token_ids, weights = candidates(logits, drawing(temperature, top_k, top_p, min_p))
    # or one so close to it that their probabilities are the same number
    gap = float(logits.max()) - float(logits[token_ids].max())
    assert math.exp(-gap / temperature) == 1
    assert (weights >= min_p).all()
    assert weights.max() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    check_finite(logits, "in row {}".format)
    logits[1, 3] = bad
    with pytest.raises(GenerationError, match=r"logit of token 3 in row 1 \(1 of 10 logits"):
        check_finite(logits, "in row {}".format)


def test_large_finite_logits_whose_sum_overflows_are_accepted() -> None:
    check_finite(np.full((1, 8), 3e38, np.float32), str)


def test_count_penalties_are_openais_formula() -> None:
    """``mu[j] - c[j] * frequency - (c[j] > 0) * presence``, of generated tokens alone."""
    logits = np.array([1.0, 2.0, 3.0, -1.0], np.float32)
    apply_count_penalties(logits, {2: 3, 3: 1}, 0.5, 0.25)
    np.testing.assert_allclose(logits, [1.0, 2.0, 3.0 - 0.5 - 0.75, -1.0 - 0.5 - 0.25])
    options = GenerationOptions(frequency_penalty=0.3, presence_penalty=-0.1)
    sampler = Sampler(options, np.array([1, 1, 1]))
    logits = np.array([0.0, 1.0, 0.75], np.float32)
    # 1: its count takes 0.2, then 0.5 of it; the prompt's own ones count nothing
    assert [sampler.choose(logits) for _ in range(4)] == [1, 1, 2, 2]
    assert logits.tolist() == [0.0, 1.0, 0.75]


def test_a_bias_comes_before_the_penalties() -> None:
    options = GenerationOptions(logit_bias={3: 2.5, 0: -100}, repetition_penalty=2.0)
    logits = np.array([9.0, 1.0, 1.0, -0.5], np.float32)
    assert Sampler(options, np.array([7])).choose(np.append(logits, np.zeros(4, np.float32))) == 3
    assert Sampler(options, np.array([3])).choose(logits) == 1, "2.0 / 2.0 is no more than the first 1.0"


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_log_probabilities_are_those_of_torch(top: int) -> None:
    random = np.random.default_rng(top)
    for size, scale in ((7, 3.0), (1021, 8.0), (151_936, 4.0)):
        logits = (random.standard_normal(size) * scale).astype(np.float32)
        expected = torch.from_numpy(logits).double().log_softmax(-1)
        found = token_logprobs(logits, 3, top)
        assert (found.token_id, found.logprob) == (3, pytest.approx(float(expected[3]), abs=1e-6))
        values, ids = expected.topk(min(top, size))
        assert [token for token, _ in found.top] == ids.tolist()
        np.testing.assert_allclose([value for _, value in found.top], values, atol=1e-6)


def test_of_equally_likely_tokens_the_first_come_first() -> None:
    logits = np.array([1.0, 2.0, 1.0, 2.0, 1.0], np.float32)
    assert [token for token, _ in token_logprobs(logits, 0, 4).top] == [1, 3, 0, 2]
