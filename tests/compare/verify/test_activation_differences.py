"""Localisation on planted faults: the layer is named exactly, rounding never is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from q2export.compare.verify import metrics
from q2export.compare.verify.activation_differences import (
    FLOAT32_NOISE,
    NoiseModel,
    first_divergence,
    layer_differences,
    stage_differences,
)
from q2export.compare.verify.activations import Activation
from q2export.compare.verify.compare import compare
from q2export.compare.verify.results import ActivationDifference, ParityReport
from q2export.errors import ParityError
from tests.compare.verify.tiny import INFO, PROMPTS, THRESHOLDS, TinyEngine, TinyModel, pair, perturb

# Where a fault in a weight shows first.
SHOWS_AT = {"mlp.gate_proj": "mlp", "mlp.up_proj": "mlp", "mlp.down_proj": "mlp"}
LAYER_WEIGHTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    *SHOWS_AT,
)


def check(layers: int, seed: int, broken: TinyModel) -> ParityReport:
    reference, _ = pair(layers, seed)
    return compare(reference, TinyEngine(broken), PROMPTS, THRESHOLDS, info=INFO, n_greedy=3)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_one_perturbed_weight_names_its_layer_and_tensor(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 8), "layers")
    seed = data.draw(st.integers(0, 50), "seed")
    layer = data.draw(st.integers(0, layers - 1), "layer")
    weight = data.draw(st.sampled_from(LAYER_WEIGHTS), "weight")
    amount = data.draw(st.floats(1e-3, 1.0), "amount") * data.draw(st.sampled_from([-1, 1]), "sign")
    _, healthy = pair(layers, seed)
    name = f"model.layers.{layer}.{weight}"
    index = tuple(data.draw(st.integers(0, size - 1)) for size in healthy.weights[name].shape)
    report = check(layers, seed, perturb(healthy, name, index, amount))
    assume(not report.passed)  # some elements hardly matter
    assert report.divergence is not None
    assert report.divergence.layer == layer
    assert report.divergence.activation.name == f"model.layers.{layer}.{SHOWS_AT.get(weight, weight)}"
    assert not report.divergence.gradual


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 50), st.data())
def test_wrong_rope_names_the_attention_of_its_layer(layers: int, seed: int, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, layers - 1), "layer")
    _, healthy = pair(layers, seed)
    report = check(layers, seed, replace(healthy, rope_base={layer: 500.0}))
    assert not report.passed and report.divergence is not None
    assert report.divergence.activation.name == f"model.layers.{layer}.self_attn.attention"
    assert report.divergence.activation.op == "Q2GroupQueryAttention"


@pytest.mark.parametrize("layer", [0, 4])
def test_two_broken_layers_name_the_first_even_if_the_second_is_worse(layer: int) -> None:
    _, healthy = pair(8)
    slight = perturb(healthy, f"model.layers.{layer}.mlp.down_proj", (2, 3), 0.01)
    report = check(8, 0, perturb(slight, "model.layers.6.mlp.down_proj", (2, 3), 5.0))
    assert report.divergence is not None and report.divergence.layer == layer


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head"])
def test_faults_outside_the_layers_are_named(name: str, layers: int) -> None:
    _, healthy = pair(layers)
    index = {"model.norm": (5,), "model.embed_tokens": (9, 5), "lm_head": (9, 5)}[name]
    report = check(layers, 0, perturb(healthy, name, index, 0.1))
    assert not report.passed and report.divergence is not None
    assert (report.divergence.layer, report.divergence.activation.name) == (None, name)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 32), st.integers(0, 1000))
def test_rounding_is_never_named(layers: int, seed: int) -> None:
    _, healthy = pair(layers, seed)
    report = check(layers, seed, healthy)
    assert report.passed and report.divergence is None and report.curve is not None
    assert not any(stage.diverges for stage in report.curve.stages)
    assert any(stage.max_error for stage in report.curve.stages)  # the two sides do differ
    assert not report.warnings


def test_a_divergence_reports_index_and_both_values() -> None:
    reference, healthy = pair(3)
    broken = perturb(healthy, "model.layers.1.self_attn.o_proj", (7, 2), 0.5)
    report = compare(reference, TinyEngine(broken), PROMPTS, THRESHOLDS, info=INFO, n_greedy=3)
    assert report.divergence is not None and report.curve is not None
    worst = report.divergence.activation.worst
    assert worst is not None and worst.channel == 7  # only this row of o_proj is wrong
    index = int(report.curve.sequence.removeprefix("prompt "))
    tokens = [*PROMPTS[index], *TinyEngine(broken).greedy(PROMPTS[index], 3)]
    at = "model.layers.1.self_attn.o_proj"
    assert reference.model.forward(tokens)[at][worst.token, 7] == pytest.approx(worst.reference, abs=1e-6)
    assert broken.forward(tokens)[at][worst.token, 7] == pytest.approx(worst.engine, abs=1e-6)


def test_a_non_finite_tensor_is_named_with_its_position() -> None:
    def spoil(name: str, value: np.ndarray) -> np.ndarray:
        value = value.copy()
        if name == "model.layers.2.self_attn.v_proj":
            value[1:, 3] = np.inf
        return value

    reference, healthy = pair(4)
    engine = TinyEngine(replace(healthy, tap=spoil))
    with np.errstate(invalid="ignore"):
        report = compare(reference, engine, PROMPTS, THRESHOLDS, info=INFO, n_greedy=3)
    assert not report.passed and report.total is None
    assert "prompt 0: engine logits are not finite: nan at token" in report.failures[0]
    assert report.divergence is not None and report.divergence.layer == 2
    point = report.divergence.activation
    assert point.name == "model.layers.2.self_attn.v_proj" and point.non_finite is not None
    assert (point.non_finite.token, point.non_finite.channel, point.non_finite.value) == (1, 3, "inf")
    assert report.curve is not None
    assert [stage.max_error is None for stage in report.curve.stages] == [False] * 3 + [True] * 4


STREAM = [Activation("model.layers.0", 0, "Add"), Activation("model.layers.1", 1, "Add")]


def test_cancelling_a_massive_activation_is_rounding() -> None:
    """A channel of 20,000 that the next layer subtracts leaves its rounding in a value near 1."""
    rng = np.random.default_rng(0)
    after = rng.standard_normal((6, 32)).astype(np.float32)
    before = after.copy()
    before[0, 3] += 20_000.0
    wrong = after.copy()
    wrong[0, 3] += 0.004  # two units in the last place of 20,000: 0.4 % of what is left
    reference = {"model.layers.0": before, "model.layers.1": after}
    engine = {"model.layers.0": before, "model.layers.1": wrong}
    errors = stage_differences(STREAM, reference, engine, FLOAT32_NOISE)
    assert not any(error.diverges for error in errors)
    unexplained = stage_differences(
        STREAM, {**reference, "model.layers.0": after}, {**engine, "model.layers.0": after}, FLOAT32_NOISE
    )
    assert [error.diverges for error in unexplained] == [False, True]


def test_inherited_error_is_no_divergence_and_a_gradual_drift_names_its_largest_step() -> None:
    reference = {f"model.layers.{i}": np.ones((2, 4), np.float32) for i in range(4)}
    stages = [Activation(name, i, "Add") for i, name in enumerate(reference)]
    noise = NoiseModel(floor=1e-3, growth=10.0)
    drift = (2e-4, 9e-4, 5e-3, 6e-3)
    engine = {
        name: value * np.float32(1 + e) for (name, value), e in zip(reference.items(), drift, strict=True)
    }
    errors = stage_differences(stages, reference, engine, noise)
    assert not any(error.diverges for error in errors)
    assert first_divergence(errors).layer == 2
    assert errors[2].tolerance == pytest.approx(10 * 9e-4 + 1e-3, rel=1e-3)


def test_activations_in_a_layer_inherit_from_those_before_them() -> None:
    """Attention may enlarge a rounding error of the queries."""
    output = ActivationDifference(
        "model.layers.0", 0, "Add", 0.0, 0.0, 0.0, 0.0, 1.0, FLOAT32_NOISE.floor, None, None
    )
    inner = [Activation("q_proj", 0, "Gemm"), Activation("attention", 0, "Q2GroupQueryAttention")]
    ones = np.ones((2, 4), np.float32)
    reference = {"q_proj": ones, "attention": ones}
    engine = {"q_proj": ones * np.float32(1 + 5e-6), "attention": ones * np.float32(1 + 5e-5)}
    errors = layer_differences(inner, reference, engine, output, FLOAT32_NOISE)
    assert [error.diverges for error in errors] == [False, False, False]
    errors = layer_differences(inner, reference, {**engine, "q_proj": ones}, output, FLOAT32_NOISE)
    assert first_divergence(errors).name == "attention"


def test_blocks_of_rows_do_not_change_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    reference = {stage.name: rng.standard_normal((9, 4)).astype(np.float32) for stage in STREAM}
    engine = {
        name: value + rng.standard_normal((9, 4)).astype(np.float32) for name, value in reference.items()
    }
    whole = stage_differences(STREAM, reference, engine, FLOAT32_NOISE)
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 8)
    blocks = stage_differences(STREAM, reference, engine, FLOAT32_NOISE)
    assert [error.worst for error in blocks] == [error.worst for error in whole]
    assert [error.mean_error for error in blocks] == pytest.approx([error.mean_error for error in whole])


def test_the_curve_is_taken_where_the_error_is_largest() -> None:
    reference, healthy = pair(3)
    engine = TinyEngine(perturb(healthy, "model.embed_tokens", (35, 5), 0.1))  # only prompt 1 has token 35
    report = compare(reference, engine, PROMPTS, THRESHOLDS, info=INFO, n_greedy=0)
    assert report.curve is not None and report.curve.sequence == "prompt 1"
    assert report.curve.tokens == len(PROMPTS[1])


def test_a_fault_at_late_positions_is_on_the_curve() -> None:
    def late(name: str, value: np.ndarray) -> np.ndarray:
        shifted = np.arange(len(value))[:, None] == 25
        return (
            np.where(shifted, value + np.float32(0.5), value)
            if name.endswith("1.self_attn.o_proj")
            else value
        )

    reference, healthy = pair(3)
    engine = TinyEngine(replace(healthy, tap=late))
    text = [int(token) for token in np.random.default_rng(0).integers(0, 61, 40)]
    report = compare(reference, engine, [], THRESHOLDS, info=INFO, text_tokens=text)
    assert report.total is not None and report.total.worst.token == 25
    assert report.curve is not None and report.curve.tokens == 26
    assert report.divergence is not None and report.divergence.activation.worst is not None
    assert report.divergence.activation.name == "model.layers.1.self_attn.o_proj"
    assert report.divergence.activation.worst.token == 25


def test_quiet_and_zero_rows_are_judged_at_the_scale_of_the_tensor() -> None:
    reference = np.ones((3, 4), np.float32)
    reference[1] = 0.0
    engine = reference.copy()
    engine[1, 2] = 1e-9
    (error,) = stage_differences(
        STREAM[:1], {"model.layers.0": reference}, {"model.layers.0": engine}, FLOAT32_NOISE
    )
    assert error.max_error == pytest.approx(1e-9 / (1e-3 * (2 / 3) ** 0.5), rel=1e-6)
    zeros = {"model.layers.0": np.zeros((3, 4), np.float32)}
    (error,) = stage_differences(STREAM[:1], zeros, {"model.layers.0": engine}, FLOAT32_NOISE)
    assert error.max_error == 1.0


def test_a_fault_in_the_residual_addition_is_named_when_those_within_the_layer_are_right() -> None:
    output = ActivationDifference("model.layers.3", 3, "Add", 0.1, 0.1, 0.1, 0.1, 1.0, 1e-5, None, None)
    inner = [Activation("model.layers.3.mlp", 3, "Gemm")]
    tensors = {"model.layers.3.mlp": np.ones((2, 2), np.float32)}
    errors = layer_differences(inner, tensors, tensors, output, FLOAT32_NOISE)
    assert first_divergence(errors) is output


def test_stages_are_the_residual_stream_and_what_is_outside_layers() -> None:
    assert Activation("model.layers.11", 11, "Add").is_stage
    assert Activation("lm_head", None, "Gemm").is_stage
    assert not Activation("model.layers.1.mlp", 1, "Gemm").is_stage
    assert not Activation("model.layers.11", 1, "Add").is_stage


def test_a_reference_that_is_not_finite_is_refused() -> None:
    bad = {"model.layers.0": np.full((2, 2), np.nan, np.float32)}
    good = {"model.layers.0": np.ones((2, 2), np.float32)}
    with pytest.raises(ParityError, match=r"reference model\.layers\.0: nan at token 0, channel 0"):
        stage_differences(STREAM[:1], bad, good, FLOAT32_NOISE)
