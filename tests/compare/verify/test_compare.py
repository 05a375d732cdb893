"""The whole check on the tiny model: verdicts, the greedy rule, calls of the reference, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from q2export.compare.verify.compare import compare
from q2export.compare.verify.greedy import check_greedy
from q2export.compare.verify.metrics import logit_scale
from q2export.compare.verify.results import ParityReport
from q2export.errors import ParityError
from tests.compare.verify.tiny import (
    INFO,
    PROMPTS,
    THRESHOLDS,
    TinyEngine,
    TinyModel,
    TinyReference,
    pair,
    perturb,
)


def words(tokens: Sequence[int]) -> str:
    return "".join(f" w{token}" for token in tokens)


def check(reference: TinyReference, engine: TinyEngine, n_greedy: int = 5) -> ParityReport:
    return compare(reference, engine, PROMPTS, THRESHOLDS, info=INFO, n_greedy=n_greedy)


def test_a_healthy_engine_passes_in_one_pass_of_the_reference() -> None:
    reference, healthy = pair(4)
    text = list(range(30))
    report = compare(
        reference,
        TinyEngine(healthy),
        PROMPTS,
        THRESHOLDS,
        info=INFO,
        n_greedy=7,
        text_tokens=text,
        decode=words,
    )
    assert report.passed and report.failures == () and report.warnings == ()
    (asked,) = reference.asked
    stages = ("model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm")
    assert asked == (4, stages)
    assert report.total is not None and report.total.tokens == (6 + 4 + 1) + 3 * 7 + 30
    assert 0 < report.total.max_abs_error < 1e-4 and report.total.top1_agreement == 1.0
    prompt, text_result = report.sequences[1], report.sequences[3]
    assert (prompt.name, prompt.prompt_tokens, prompt.tokens) == ("prompt 1", 4, 11)
    assert prompt.prompt_text == " w35 w8 w9 w7" and prompt.generated_text.count("w") == 7
    assert prompt.greedy is not None and prompt.greedy.first is None and prompt.greedy.generated == 7
    assert text_result.greedy is None and text_result.reference_perplexity is not None
    assert text_result.engine_perplexity == pytest.approx(text_result.reference_perplexity, rel=1e-5)


def test_a_failure_costs_one_more_pass_over_one_sequence() -> None:
    reference, healthy = pair(4)
    report = check(reference, TinyEngine(perturb(healthy, "model.layers.2.mlp.up_proj", (0, 0), 2.0)))
    assert not report.passed
    (_, (sequences, names)) = reference.asked
    assert sequences == 1
    assert names[0] == "model.layers.2.input_layernorm" and names[-1] == "model.layers.2.mlp"


def test_greedy_differences_are_judged_along_the_text_of_the_engine() -> None:
    reference, healthy = pair(2)
    broken = perturb(healthy, "lm_head", (11, 3), 6.0)
    report = check(reference, TinyEngine(broken), n_greedy=12)
    result = next(s for s in report.sequences if s.greedy and s.greedy.first)
    assert result.greedy is not None and result.greedy.first is not None
    first = result.greedy.first
    prompt = PROMPTS[int(result.name.removeprefix("prompt "))]
    generated = TinyEngine(broken).greedy(prompt, 12)
    by_hand = TinyEngine(reference.model).greedy(prompt, 12)
    assert generated[: first.step] == by_hand[: first.step]
    assert (generated[first.step], by_hand[first.step]) == (first.engine_token, first.reference_token)
    logits = reference.model.forward([*prompt, *generated[: first.step]])["lm_head"][-1]
    assert first.margin == pytest.approx(float(logits.max() - logits[first.engine_token]), abs=1e-5)
    assert not first.tie and not first.prefill_agrees
    assert any(
        failure.startswith(f"{result.name}: greedy token {first.step} is") for failure in report.failures
    )


def test_a_wrong_decode_path_is_told_from_a_wrong_prefill() -> None:
    reference, healthy = pair(3)
    decoder = perturb(healthy, "lm_head", (11, 3), 6.0)
    report = check(reference, TinyEngine(healthy, decoder=decoder), n_greedy=12)
    assert not report.passed and report.divergence is None
    assert report.total is not None and report.total.max_abs_error < 1e-4
    assert all("suspect the KV cache" in failure for failure in report.failures)


def test_the_tie_rule_is_twice_the_allowed_error() -> None:
    reference = np.array([[0.0, 1.0, 0.9], [0.0, 1.0, 0.75], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    result = check_greedy([0, 2, 2, 0], 1, reference, reference, tie_margin=0.2, decode=words)
    assert (result.generated, result.differences, result.ties) == (3, 1, 1)
    assert result.first_tie is not None and result.first_tie.step == 0
    assert result.first_difference is not None and result.first_difference.step == 1
    assert result.first is result.first_tie
    exact = check_greedy([0, 2, 2, 0], 1, reference, reference, tie_margin=0.25, decode=words)
    assert (exact.differences, exact.ties) == (0, 2)
    behind = check_greedy([0, 2, 2, 0], 1, reference, reference, 0.2, words, experts_tie_from=1)
    assert (behind.differences, behind.ties) == (0, 2), "its own scoring agrees with the reference"
    before = check_greedy([0, 2, 2, 0], 1, reference, reference, 0.2, words, experts_tie_from=2)
    assert (before.differences, before.ties) == (1, 1)
    fault = check_greedy([0, 2, 2, 0], 1, reference, -reference, 0.2, words, experts_tie_from=0)
    assert (fault.differences, fault.ties) == (1, 1)
    assert result.first_difference.reference_text == " w1" and result.first_difference.engine_text == " w2"


@pytest.mark.parametrize(("behind", "passes"), [(0.0, True), (2e-6, True), (2e-4, False)])
def test_near_ties_pass_and_are_counted(behind: float, passes: bool) -> None:
    """A second token scores ``behind`` less than the first in the reference; the engine decodes to it."""
    reference, healthy = pair(2)
    first = TinyEngine(reference.model).greedy(PROMPTS[0], 1)[0]
    other = (first + 1) % 61
    head = reference.model.weights["lm_head"].copy()
    head[other] = head[first] * np.float32(1 - behind)
    leaning = head.copy()
    leaning[other] = head[first] * np.float32(1 + 1e-3)
    same = {"lm_head": head}
    model = replace(reference.model, weights={**reference.model.weights, **same})
    engine = replace(healthy, weights={**healthy.weights, **same})
    decoder = replace(healthy, weights={**healthy.weights, "lm_head": leaning})
    report = compare(
        TinyReference(model), TinyEngine(engine, decoder), PROMPTS[:1], THRESHOLDS, info=INFO, n_greedy=1
    )
    assert report.passed is passes
    (sequence,) = report.sequences
    assert sequence.greedy is not None and sequence.greedy.ties == int(passes)
    if passes:
        assert report.warnings == ("1 greedy token is a near-tie, decided otherwise by rounding",)
    else:
        assert sequence.greedy.first_difference is not None
        assert 2e-4 < sequence.greedy.first_difference.margin < 2e-2


def test_an_error_that_vanishes_when_tensors_are_exposed_is_said_so() -> None:
    reference, healthy = pair(3)
    fused = perturb(healthy, "model.layers.1.mlp.up_proj", (0, 0), 2.0)
    report = check(reference, TinyEngine(fused, exposed=healthy))
    assert not report.passed and report.divergence is None
    assert any("vanishes when intermediate tensors are exposed" in warning for warning in report.warnings)


def test_a_divergence_within_the_limits_is_a_warning() -> None:
    reference, healthy = pair(3)
    loose = replace(
        THRESHOLDS,
        max_abs_logit_error=10.0,
        max_kl_divergence=10.0,
        min_cosine_similarity=0.0,
        min_top1_agreement=0.0,
    )
    engine = TinyEngine(perturb(healthy, "model.layers.1.self_attn.o_proj", (0, 0), 0.1))
    report = compare(reference, engine, PROMPTS, loose, info=INFO, n_greedy=0)
    assert report.passed and report.divergence is None and len(reference.asked) == 1
    assert report.warnings[0].startswith("model.layers.1 differs by more than rounding explains")


def test_an_opaque_engine_is_judged_without_a_curve() -> None:
    reference, healthy = pair(2)
    hidden = {point.name for point in TinyEngine(healthy).activations()}
    broken = perturb(healthy, "lm_head", (1, 1), 1.0)
    report = check(reference, TinyEngine(broken, hidden=hidden))
    assert not report.passed and report.curve is None and report.divergence is None
    assert reference.asked == [(3, ())]
    assert "exposes no intermediate tensors" in report.warnings[-1]


def test_fused_points_are_left_out() -> None:
    reference, healthy = pair(2)
    hidden = {"model.norm", "model.layers.1.input_layernorm", "model.layers.1.self_attn.q_proj"}
    broken = perturb(healthy, "model.layers.1.self_attn.q_proj", (1, 1), 2.0)
    report = check(reference, TinyEngine(broken, hidden=hidden))
    assert report.divergence is not None
    assert report.divergence.activation.name == "model.layers.1.self_attn.attention"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_abs_logit_error": 1e-7}, "max abs logit error"),
        ({"max_kl_divergence": 0.0}, "max KL divergence"),
        ({"min_cosine_similarity": 1.0}, "min cosine similarity"),
    ],
)
def test_each_limit_is_applied(change: dict[str, float], words: str) -> None:
    reference, healthy = pair(4)
    limits = replace(THRESHOLDS, **change)
    report = compare(reference, TinyEngine(healthy), PROMPTS, limits, info=INFO, n_greedy=0)
    assert len(report.failures) == 1 and report.failures[0].startswith(words)


@pytest.mark.parametrize("factor", [1.0, 3.0, 1e4])
def test_limits_grow_with_the_logits(factor: float) -> None:
    """Rounding errors do, and a fault does, too."""
    reference, healthy = pair(3)

    def larger(model: TinyModel) -> TinyModel:
        head = model.weights["lm_head"] * np.float32(factor)
        return replace(model, weights={**model.weights, "lm_head": head})

    reference = TinyReference(larger(reference.model))
    report = check(reference, TinyEngine(larger(healthy)))
    assert report.passed and (report.logit_scale == 1) is (factor < 10)
    assert report.limits.max_abs_logit_error == THRESHOLDS.max_abs_logit_error * report.logit_scale
    assert report.limits.max_kl_divergence == THRESHOLDS.max_kl_divergence * report.logit_scale
    faulty = larger(perturb(healthy, "model.layers.1.mlp.up_proj", (0, 0), 0.1))
    report = check(reference, TinyEngine(faulty))
    assert not report.passed
    assert report.divergence is not None and report.divergence.layer == 1


def test_a_constant_added_to_all_logits_widens_no_limit() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 97)).astype(np.float32)
    assert logit_scale([rows + 1000, rows]) == 1
    assert logit_scale([rows * 100, rows * 100]) == pytest.approx(10 * rows.std(), rel=0.05)


def test_top1_agreement_is_applied() -> None:
    reference, healthy = pair(2)
    broken = perturb(healthy, "lm_head", (11, 3), 6.0)
    failures = check(reference, TinyEngine(broken), n_greedy=12).failures
    assert any(
        failure.startswith("top-1 agreement") and "of 47 tokens differ" in failure for failure in failures
    )


class OutsideVocabulary(TinyEngine):
    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        return [0] * n

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        return super().score(tokens)[:, :-1]


def test_sides_that_cannot_be_compared_are_refused() -> None:
    reference, healthy = pair(2)
    engine = TinyEngine(healthy)
    cases = [
        (reference, OutsideVocabulary(healthy), PROMPTS, None, r"\[11, 61\] and the engine \[11, 60\]"),
        (reference, engine, [[]], None, "prompt 0 has no tokens"),
        (reference, engine, [], None, "nothing to compare"),
        (reference, engine, [], [4], "the text has 1 tokens"),
    ]
    for side, probe, prompts, text, message in cases:
        with pytest.raises(ParityError, match=message):
            compare(side, probe, prompts, THRESHOLDS, info=INFO, n_greedy=5, text_tokens=text)


def test_a_reference_that_is_not_finite_is_refused() -> None:
    reference, healthy = pair(2)
    spoilt = replace(
        reference.model, tap=lambda name, value: value * np.float32(np.nan if name == "lm_head" else 1)
    )
    with pytest.raises(ParityError, match="prompt 0: reference logits: nan at token 0, channel 0"):
        check(TinyReference(spoilt), TinyEngine(healthy))
