"""Metrics against definitions written out in plain Python loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.compare.verify import metrics
from q2export.compare.verify.metrics import (
    first_non_finite,
    measure_logits,
    merge_metrics,
    perplexity,
    require_finite,
)
from q2export.errors import ParityError


def softmax(row: np.ndarray) -> list[float]:
    top = max(row)
    weights = [math.exp(float(value) - float(top)) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(reference: np.ndarray, engine: np.ndarray) -> float:
    return sum(p * math.log(p / q) for p, q in zip(softmax(reference), softmax(engine), strict=True))


def sides(seed: int, tokens: int, vocab: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = (3 * rng.standard_normal((tokens, vocab))).astype(np.float32)
    engine = (reference + noise * rng.standard_normal((tokens, vocab))).astype(np.float32)
    return reference, engine


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(2, 37), st.sampled_from([0.0, 1e-5, 0.3, 4.0]))
def test_every_metric_equals_its_definition(seed: int, tokens: int, vocab: int, noise: float) -> None:
    reference, engine = sides(seed, tokens, vocab, noise)
    found = measure_logits(reference, engine, tie_margin=0.0)
    r, e = reference.astype(np.float64), engine.astype(np.float64)
    absolute, relative, cosines = [], [], []
    for i in range(tokens):
        rms = math.sqrt(sum(v * v for v in r[i]) / vocab)
        absolute += [abs(a - b) for a, b in zip(r[i], e[i], strict=True)]
        relative += [abs(a - b) / max(abs(a), rms) for a, b in zip(r[i], e[i], strict=True)]
        cosines.append(float(r[i] @ e[i]) / math.sqrt(float(r[i] @ r[i]) * float(e[i] @ e[i])))
    divergences = [kl(r[i], e[i]) for i in range(tokens)]
    assert found.max_abs_error == max(absolute)
    assert found.mean_abs_error == pytest.approx(sum(absolute) / len(absolute), rel=1e-12)
    assert found.max_rel_error == pytest.approx(max(relative), rel=1e-12)
    assert found.mean_rel_error == pytest.approx(sum(relative) / len(relative), rel=1e-12)
    assert found.min_cosine == pytest.approx(min(cosines), abs=1e-12)
    assert found.max_kl == pytest.approx(max(divergences), abs=1e-12)
    assert found.mean_kl == pytest.approx(sum(divergences) / tokens, abs=1e-12)
    assert found.top1_matches == sum(int(r[i].argmax() == e[i].argmax()) for i in range(tokens))
    assert found.reference_rms == pytest.approx(math.sqrt(float(np.square(r).mean())), rel=1e-12)
    worst = found.worst
    assert abs(worst.engine - worst.reference) == found.max_abs_error
    assert r[worst.token, worst.channel] == worst.reference
    assert found.histogram.zeros + sum(found.histogram.counts) == tokens * vocab
    assert found.histogram.zeros == absolute.count(0.0)


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    reference, engine = sides(1, 11, 6, 0.2)
    whole = measure_logits(reference, engine, 0.1)
    whole_perplexity = perplexity(reference, [5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", block)
    parts = measure_logits(reference, engine, 0.1)
    assert parts.worst == whole.worst and parts.histogram == whole.histogram
    assert parts.mean_kl == pytest.approx(whole.mean_kl, rel=1e-12)
    assert parts.top1_matches == whole.top1_matches and parts.top1_ties == whole.top1_ties
    again = perplexity(reference, [5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    assert again == pytest.approx(whole_perplexity, rel=1e-12)


def test_merging_sequences_is_measuring_them_together() -> None:
    reference, engine = sides(2, 13, 9, 0.5)
    together = measure_logits(reference, engine, 0.2)
    merged = merge_metrics(
        [measure_logits(reference[s], engine[s], 0.2) for s in (slice(0, 4), slice(4, 5), slice(5, 13))]
    )
    assert merged.tokens == 13 and merged.histogram == together.histogram
    assert merged.mean_abs_error == pytest.approx(together.mean_abs_error, rel=1e-12)
    assert merged.reference_rms == pytest.approx(together.reference_rms, rel=1e-12)
    assert merged.worst.reference == together.worst.reference


def test_a_mismatch_within_the_margin_is_a_tie() -> None:
    reference = np.array([[1.0, 0.9, 0.0], [1.0, 0.0, 0.5], [0.0, 2.0, 1.0]], np.float32)
    engine = np.array([[0.9, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 1.0]], np.float32)
    found = measure_logits(reference, engine, tie_margin=0.2)
    assert (found.top1_matches, found.top1_ties) == (1, 1)
    assert found.top1_agreement == pytest.approx(1 / 3)
    assert found.top1_agreement_with_ties == pytest.approx(2 / 3)


def test_histogram_bins_hold_what_they_say() -> None:
    reference = np.zeros((1, 5), np.float32)
    engine = np.array([[0.0, 2e-3, 0.5, 1e-20, 1e9]], np.float32)
    histogram = measure_logits(reference, engine, 0.0).histogram
    edges = [10.0 ** (histogram.first + i / histogram.per_decade) for i in range(len(histogram.counts) + 1)]
    for value in (2e-3, 0.5):
        (index,) = [i for i in range(len(histogram.counts)) if edges[i] <= value < edges[i + 1]]
        assert histogram.counts[index] == 1
    assert histogram.zeros == 1 and histogram.counts[0] == 1 and histogram.counts[-1] == 1


def test_rows_of_zeros_are_measured() -> None:
    zero, some = np.zeros((1, 4), np.float32), np.array([[0.0, 0.0, 1.0, 0.0]], np.float32)
    assert measure_logits(zero, zero, 0.0).min_cosine == 1.0
    assert measure_logits(zero, some, 0.0).min_cosine == 0.0
    assert measure_logits(zero, some, 0.0).max_rel_error == 1.0


def test_perplexity_of_uniform_and_certain_predictions() -> None:
    assert perplexity(np.zeros((4, 17), np.float32), [1, 2, 3, 4]) == pytest.approx(17.0)
    certain = np.full((3, 5), -40.0, np.float32)
    certain[[0, 1], [2, 4]] = 40.0
    assert perplexity(certain, [0, 2, 4]) == pytest.approx(1.0)
    assert math.isfinite(perplexity(np.array([[1e9, 0.0], [0.0, 0.0]], np.float32), [0, 1]))


@pytest.mark.parametrize(("rows", "tokens"), [(1, [3]), (2, [1, 2, 3])])
def test_perplexity_refuses_what_it_cannot_score(rows: int, tokens: list[int]) -> None:
    with pytest.raises(ParityError, match=f"found {rows} rows for {len(tokens)} tokens"):
        perplexity(np.zeros((rows, 5), np.float32), tokens)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_non_finite_values_are_refused_with_their_position(value: float, name: str) -> None:
    reference, engine = sides(3, 5, 8, 0.1)
    engine[3, 6] = engine[4, 0] = value
    found = first_non_finite(engine)
    assert found is not None and (found.token, found.channel, found.value, found.count) == (3, 6, name, 2)
    with pytest.raises(ParityError, match=rf"engine logits: {name} at token 3, channel 6 \(2 values"):
        measure_logits(reference, engine, 0.0)
    with pytest.raises(ParityError, match="reference logits"):
        measure_logits(engine, reference, 0.0)
    require_finite(reference, "reference")


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ParityError, match=r"\[3, 5\] and the engine \[3, 6\]"):
        measure_logits(np.zeros((3, 5), np.float32), np.zeros((3, 6), np.float32), 0.0)
