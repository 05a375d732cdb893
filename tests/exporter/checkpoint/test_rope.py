"""Rotary embedding: inverse frequencies against transformers, both spellings, and what is refused."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from q2export.errors import ConfigError
from q2export.exporter.checkpoint.rope import RopeParameters, inverse_frequencies
from q2export.exporter.checkpoint.rope_config import parse_rope

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "yarn": YARN,
    "yarn, fractions kept": {**YARN, "truncate": False},
    "yarn, attention factor": {**YARN, "attention_factor": 0.83},
    "yarn, mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3},
    "yarn, one mscale": {**YARN, "mscale": 0.707},
    "yarn, betas": {**YARN, "beta_fast": 24, "beta_slow": 2.5},
    "yarn, no original length": {"rope_type": "yarn", "factor": 2.0},
    "yarn, factor 1": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096},
    "yarn, short original": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 5},
}


def upstream(config: dict[str, object], head_dim: int) -> tuple[np.ndarray, float]:
    hf = Qwen2Config(hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, **config)
    rope_type = hf.rope_parameters["rope_type"]
    compute = ROPE_INIT_FUNCTIONS.get(rope_type, Qwen2RotaryEmbedding.compute_default_rope_parameters)
    inv_freq, factor = compute(hf)
    return inv_freq.numpy(), factor


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), list(product((4, 64, 80, 128), (10000.0, 1000000))))
def test_frequencies_are_transformers(name: str, head_dim: int, theta: float) -> None:
    config = {"rope_scaling": SCALINGS[name], "rope_theta": theta, "max_position_embeddings": 32768}
    expected, expected_factor = upstream({**config, "rope_scaling": dict(SCALINGS[name])}, head_dim)
    rope, _ = parse_rope(config, 32768)
    found, factor = inverse_frequencies(rope, head_dim)
    assert found.dtype == np.float32
    assert factor == expected_factor
    ulps = np.abs(found.view(np.int32).astype(np.int64) - expected.view(np.int32))
    # torch's pow is not correctly rounded: one power in a hundred, and what is made of it, is off by a bit.
    assert np.count_nonzero(ulps) <= 1 + head_dim // 64
    assert ulps.max() <= 2


@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
def test_closed_form(theta: float) -> None:
    plain, factor = inverse_frequencies(RopeParameters(rope_theta=theta), 128)
    assert factor == 1
    assert plain[0] == 1
    np.testing.assert_allclose(plain[64 // 2], theta**-0.5, rtol=1e-6)
    np.testing.assert_allclose(plain[1:] / plain[:-1], theta ** (-2 / 128), rtol=1e-6)


def test_yarn_keeps_fast_and_interpolates_slow_dimensions() -> None:
    """Pairs below 23 keep their frequency and those from 40 on are divided by 4 (d 128, 32k, 1e6)."""
    plain, _ = inverse_frequencies(RopeParameters(rope_theta=1e6), 128)
    rope = RopeParameters("yarn", 1e6, 4.0, 32768)
    yarn, factor = inverse_frequencies(rope, 128)
    assert factor == pytest.approx(1.1386294361)
    share = (yarn / plain - 0.25) / 0.75  # 1 kept, 0 interpolated
    np.testing.assert_allclose(share[:24], 1, atol=1e-6)
    np.testing.assert_allclose(share[40:], 0, atol=1e-6)
    np.testing.assert_allclose(share[24:40], 1 - np.arange(1, 17) / 17, atol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_both_spellings_say_the_same(name: str) -> None:
    scaling = SCALINGS[name]
    old = {key: value for key, value in scaling.items() if key != "rope_type"} | {
        "type": scaling["rope_type"]
    }
    expected = parse_rope({"rope_parameters": {**scaling, "rope_theta": 5e5}}, 32768)[0]
    assert parse_rope({"rope_scaling": old, "rope_theta": 5e5}, 32768)[0] == expected
    assert parse_rope({"rope_scaling": scaling, "rope_theta": 5e5}, 32768)[0] == expected
    assert expected.rope_theta == 5e5
    # transformers writes both spellings of the type when it has read the old one
    assert parse_rope({"rope_parameters": {**scaling, **old, "rope_theta": 5e5}}, 32768)[0] == expected


def test_theta_inside_goes_before_theta_beside() -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0}
    assert parse_rope(config, 512)[0].rope_theta == 7
    assert upstream(config, 4)[0][1] == pytest.approx(7**-0.5)


def test_absent_theta_takes_the_default_and_says_so() -> None:
    rope, warnings = parse_rope({}, 512)
    assert rope == RopeParameters("default", 10000.0)
    assert warnings == ("rope_theta is absent: using transformers' default 10000",)
    np.testing.assert_array_equal(inverse_frequencies(rope, 4)[0], upstream({}, 4)[0])


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"rope_scaling": {**YARN, "beta_fats": 3}}, "rope_scaling.beta_fats is not read.*'beta_fast'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "truncate": True}}, "truncate is not read"),
        ({"rope_scaling": {**YARN, "factor": 3}}, "factor is 3 but .* is 4: using 3"),
        ({"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale and mscale_all_dim only count together"),
    ],
)
def test_warnings(config: dict[str, object], warning: str) -> None:
    warnings = parse_rope({"rope_theta": 1e6, **config}, 131072)[1]
    assert len(warnings) == 1
    assert re.search(warning, warnings[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic' is not implemented; valid: default",
        ),
        ({"rope_scaling": {"type": "yran", "factor": 2.0}}, "did you mean 'yarn'"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_scaling.type: expected a string"),
        ({"rope_scaling": {"rope_type": None}}, "rope_scaling.rope_type: expected a string, found None"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "differ: linear, yarn"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type is missing, yet factor is given"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "factor: expected a number of at least 1, found 0.5",
        ),
        ({"rope_scaling": {**YARN, "factor": True}}, "factor: expected a number"),
        ({"rope_scaling": {**YARN, "factor": float("inf")}}, "factor: expected a number"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "truncate: expected true or false"),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "attention_factor: expected a positive number"),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 32}}, "beta_fast >= beta_slow"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "expected an integer of 1"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 4096}, "is 4096 and .* is 32768"),
        *(
            ({"rope_scaling": YARN} | changes, "original_max_position_embeddings: expected " + expected)
            for changes, expected in (
                ({"original_max_position_embeddings": None}, "a number of tokens, or no such field"),
                ({"rope_scaling": {**YARN, "original_max_position_embeddings": None}}, "a number of tokens"),
                ({"rope_scaling": {**YARN, "original_max_position_embeddings": 1}}, "at least 2 tokens"),
            )
        ),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, "both given and differ"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "per layer type .full_attention.",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ({"rope_theta": 0}, "rope_theta: expected a positive number"),
        ({"rope_theta": 1.0}, "greater than 1"),
        ({"rope_theta": "1e6"}, "rope_theta: expected a positive number, found '1e6'"),
    ],
)
def test_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rope(config, 131072)
