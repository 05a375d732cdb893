"""``config.json``: defaults and per-layer rules against transformers, what is warned about or refused."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2MoeConfig

from q2export.errors import ConfigError
from q2export.exporter.checkpoint.config import ModelConfig, load_config, parse_config
from tests.helpers.checkpoints import tiny_config, write_json
from tests.helpers.shared import REAL_MODELS, real_config

CLASSES = {"qwen2": Qwen2Config, "qwen2_moe": Qwen2MoeConfig}
SAME_NAMES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
]
SAME_MOE_NAMES = [
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
]


def moe_config(**overrides: object) -> dict[str, object]:
    return tiny_config(model_type="qwen2_moe", **overrides)


def parsed(data: dict[str, object]) -> ModelConfig:
    return parse_config(data, "config.json")


def assert_agrees(data: dict[str, object]) -> None:
    """Every field transformers resolves, this package resolves to the same value."""
    ours = parsed(data)
    hf = CLASSES[ours.model_type](**{key: value for key, value in data.items() if key != "model_type"})
    for name in SAME_NAMES:
        assert getattr(ours, name) == getattr(hf, name), name
    assert ours.head_dim == getattr(hf, "head_dim", hf.hidden_size // hf.num_attention_heads)
    assert list(ours.layer_types) == hf.layer_types
    assert ours.rope.rope_type == hf.rope_parameters["rope_type"]
    assert ours.rope.rope_theta == hf.rope_parameters["rope_theta"]
    assert ours.qkv_bias == getattr(hf, "qkv_bias", True)
    if "sliding_attention" in hf.layer_types:
        assert ours.sliding_window == hf.sliding_window
    assert (ours.torch_dtype is None) == (hf.dtype is None)
    assert ours.torch_dtype is None or str(hf.dtype) == f"torch.{ours.torch_dtype}"
    if ours.moe is not None:
        for name in SAME_MOE_NAMES:
            assert getattr(ours.moe, name) == getattr(hf, name), name
        assert list(ours.moe.mlp_only_layers) == hf.mlp_only_layers


@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_configs(name: str) -> None:
    data = real_config(name)
    assert_agrees(data)
    assert parsed(data).warnings == ()


@pytest.mark.parametrize("model_type", CLASSES)
def test_defaults_of_absent_fields(model_type: str) -> None:
    assert_agrees({"model_type": model_type})
    absent = {warning.split(" ")[0] for warning in parsed({"model_type": model_type}).warnings}
    assert {"rope_theta", "rms_norm_eps", "num_attention_heads", "num_key_value_heads"} <= absent
    assert ("norm_topk_prob" in absent) == (model_type == "qwen2_moe")


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize(
    "overrides",
    [
        {"head_dim": 128},
        {"head_dim": 20, "num_key_value_heads": 7},
        {"tie_word_embeddings": True},
        {"dtype": "float16", "torch_dtype": "bfloat16"},
        {"use_sliding_window": True, "max_window_layers": 3},
        {"use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 99},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 5},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 4 + ["sliding_attention"]},
        {"use_sliding_window": False, "sliding_window": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5.5}},
    ],
    ids=str,
)
def test_variants_resolve_as_in_transformers(model_type: str, overrides: dict[str, object]) -> None:
    fields = {"num_hidden_layers": 5, "sliding_window": 7, **overrides}
    assert_agrees(tiny_config(model_type=model_type, **fields))


def test_windows_by_layer() -> None:
    """Qwen2 slides from ``max_window_layers`` on; Qwen2-MoE on every other layer before it."""
    sliding = {
        "num_hidden_layers": 5,
        "sliding_window": 7,
        "use_sliding_window": True,
        "max_window_layers": 3,
    }
    dense, moe = parsed(tiny_config(**sliding)), parsed(moe_config(**sliding))
    assert [dense.window(i) for i in range(5)] == [None, None, None, 7, 7]
    assert [moe.window(i) for i in range(5)] == [7, None, 7, None, None]
    assert parsed(tiny_config()).window(1) is None
    assert parsed(tiny_config()).sliding_window is None


def test_null_counts_as_absent_where_transformers_allows_it() -> None:
    nulls = dict.fromkeys(
        ("rope_scaling", "layer_types", "sliding_window", "head_dim", "dtype", "torch_dtype")
    )
    config = parsed({**tiny_config(), **nulls, "num_key_value_heads": None})
    assert config.num_key_value_heads == config.num_attention_heads == 14
    assert config.head_dim == 4
    assert config.torch_dtype is None
    assert parsed({**moe_config(), "mlp_only_layers": None}).moe == parsed(moe_config()).moe


def test_moe_layers() -> None:
    every_second = parsed(moe_config(num_hidden_layers=7, decoder_sparse_step=2, mlp_only_layers=[3, 4]))
    assert [i for i in range(7) if every_second.is_moe_layer(i)] == [1, 5]
    assert all(parsed(moe_config()).is_moe_layer(i) for i in range(2))
    assert not parsed(tiny_config()).is_moe_layer(0)


@pytest.mark.parametrize(
    ("rope", "maximum", "length"),
    [
        (None, 32768, 32768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072, 131072),
        ({"type": "yarn", "factor": 2.5}, 1001, 2502),
        ({"type": "linear", "factor": 2.0}, 4096, 4096),
    ],
)
def test_context_length(rope: dict[str, object] | None, maximum: int, length: int) -> None:
    config = parsed(tiny_config(rope_scaling=rope, max_position_embeddings=maximum))
    assert config.context_length == length
    assert config.warnings == ()


def test_a_context_without_room_for_a_second_token_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"max_position_embeddings: .* 2 tokens or more .*, found a context of 1"
    ):
        parsed(tiny_config(max_position_embeddings=1))
    assert parsed(tiny_config(max_position_embeddings=2)).context_length == 2


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        ({"rms_norm_epz": 1e-5}, r"unknown field 'rms_norm_epz' .* did you mean 'rms_norm_eps'\?"),
        ({"num_experts": 8}, r"unknown field 'num_experts' is ignored and could change the numbers"),
        ({"logit_scale": 0.5}, r"unknown field 'logit_scale' is ignored and could change the numbers$"),
        ({"auto_map": {"AutoModel": "modeling.X"}}, "unknown field 'auto_map'"),
        ({"original_max_position_embeddings": 64}, "unknown field 'original_max_position_embeddings'"),
        ({"x" * 5000: 1}, r"unknown field 'x+\.\.\.x+'"),
        ({"rms_norm_eps": None}, "rms_norm_eps is absent: using transformers' default"),
        ({"rope_theta": None}, "rope_theta is absent: using transformers' default 10000"),
    ],
)
def test_warned_about(overrides: dict[str, object], warning: str) -> None:
    warnings = parsed(tiny_config(**overrides)).warnings
    assert len(warnings) == 1
    assert re.search(warning, warnings[0])
    assert len(warnings[0]) < 250


def test_harmless_fields_are_silent() -> None:
    fields = {
        "attention_dropout": 0.1,
        "transformers_version": "4.37.0",
        "_name_or_path": "x",
        "temperature": 1,
    }
    assert parsed(tiny_config(**fields)).warnings == ()
    assert (
        parsed({**tiny_config(), "quantization_config": None, "pruned_heads": {}, "is_causal": True}).warnings
        == ()
    )


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"model_type": "llama"}, "model_type: expected one of qwen2, qwen2_moe, found 'llama'"),
    ({"model_type": None}, "model_type is missing"),
    ({"model_type": ["qwen2"]}, "model_type: expected a string"),
    ({"architectures": ["Qwen2ForSequenceClassification"]}, "architectures: expected Qwen2ForCausalLM"),
    ({"architectures": "Qwen2ForCausalLM"}, "architectures: expected a list of strings"),
    ({"hidden_size": True}, "hidden_size: expected an integer of 1 to 2147483647, found True"),
    ({"hidden_size": 56.0}, "hidden_size: expected an integer"),
    ({"hidden_size": "56"}, "hidden_size: expected an integer of 1 to 2147483647, found '56'"),
    ({"hidden_size": 57}, r"hidden_size: expected a multiple of num_attention_heads \(14\)"),
    ({"vocab_size": 0}, "vocab_size: expected an integer of 1"),
    ({"intermediate_size": -72}, "intermediate_size: expected an integer of 1"),
    ({"vocab_size": 1 << 31}, "vocab_size: expected an integer of 1 to 2147483647"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected an integer of 1 to 4096"),
    ({"num_key_value_heads": 4}, r"expected a multiple of num_key_value_heads \(4\), found 14"),
    ({"num_key_value_heads": 0}, "num_key_value_heads: expected an integer of 1"),
    ({"head_dim": 5}, "head_dim: expected an even number .*, found 5"),
    ({"hidden_act": "gelu"}, "hidden_act: expected 'silu' .*, found 'gelu'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps: expected a positive number, found 0"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a positive number, found '1e-6'"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps: expected a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
    ({"qkv_bias": False}, "qkv_bias: .* qwen2 always has biases"),
    ({"torch_dtype": "float64"}, "torch_dtype: expected one of float32, float16, bfloat16, found 'float64'"),
    ({"dtype": 16}, "dtype: expected a string"),
    ({"use_sliding_window": "no"}, "use_sliding_window: expected true or false"),
    (
        {"use_sliding_window": True, "sliding_window": None},
        "sliding_window is missing; .* use_sliding_window is true",
    ),
    ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window: expected an integer of 1"),
    ({"sliding_window": -1}, "sliding_window: expected an integer of 0"),
    ({"max_window_layers": -1}, "max_window_layers: expected an integer of 0"),
    ({"layer_types": ["full_attention"]}, r"layer_types: expected num_hidden_layers \(2\) items, found 1"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention' is not implemented"),
    ({"layer_types": ["full_attention", 1]}, "layer_types: expected a list of strings"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "yet use_sliding_window is false"),
    ({"dual_chunk_attention_config": {"chunk_size": 8192}}, "Dual Chunk Attention is not implemented yet"),
    ({"quantization_config": 4}, "quantization_config: expected an object, found 4"),
    ({"compression_config": {}}, "compression_config: checkpoints of compressed-tensors are not supported"),
    ({"per_layer_config": {}}, "per_layer_config"),
    ({"is_causal": False}, "is_causal: expected True or no such field"),
    ({"is_causal": 1}, "is_causal: expected True or no such field"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder: expected False"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type: rope type 'longrope' is not implemented"),
]
REFUSED_MOE: list[tuple[dict[str, object], str]] = [
    ({"num_experts_per_tok": 7}, r"num_experts_per_tok: expected at most num_experts \(6\), found 7"),
    ({"num_experts": 0}, "num_experts: expected an integer of 1 to 4096"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step: expected an integer of 1"),
    ({"mlp_only_layers": [2]}, "mlp_only_layers: expected layers 0 to 1, found 2"),
    ({"mlp_only_layers": [-1]}, "mlp_only_layers: expected layers 0 to 1, found -1"),
    ({"mlp_only_layers": [True]}, "mlp_only_layers: expected a list of integers"),
    ({"mlp_only_layers": 0}, "mlp_only_layers: expected a list of integers"),
    ({"norm_topk_prob": None, "qkv_bias": "yes"}, "qkv_bias: expected true or false"),
    ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size: expected an integer of 1"),
]


@pytest.mark.parametrize(
    ("data", "message"),
    [(tiny_config(**overrides), message) for overrides, message in REFUSED]
    + [(moe_config(**overrides), message) for overrides, message in REFUSED_MOE],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(data, "model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "name", ["hidden_size", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "rope_theta"]
)
def test_null_is_refused_where_transformers_refuses_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected .*, found None"):
        parsed({**tiny_config(), name: None})


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="layer_types"):
        replace(parsed(tiny_config()), num_hidden_layers=3)


GOOD = json.dumps(tiny_config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", r"expected a JSON object, found \[\]"),
        (b"{" + b'"a":' * 3, "not valid JSON"),
        (GOOD.encode()[:-1], "not valid JSON"),
        (GOOD.encode("utf-16"), "expected UTF-8 text, found byte 0"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "BOM"),
        (b'{"a": "\xff"}', "expected UTF-8 text, found byte 7"),
        (b'{"rope_theta": NaN}', "NaN is not a number"),
        (b'{"rope_theta": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1, "hidden_size": 1, "a": 1}', "the key 'a' is given twice"),
        (b'{"rope_scaling": {"type": "yarn", "type": "yarn"}}', "the key 'type' is given twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "an integer of 10000 digits"),
        (GOOD.replace("131", "1e999").encode(), "vocab_size: expected an integer"),
        (GOOD.replace("1e-06", "1e999").encode(), "rms_norm_eps: expected a positive number, found inf"),
        (GOOD.replace("silu", "\\ud800").encode(), r"hidden_act: .*\\ud800"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'config.json'}: ")
    text.encode()  # it can be printed
    assert len(text) < 400


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json: cannot be read: No such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="expected a regular file"):
        load_config(tmp_path)
    (tmp_path / "config.json").rmdir()
    os.mkfifo(tmp_path / "config.json")  # reading it would wait for ever
    with pytest.raises(ConfigError, match="expected a regular file"):
        load_config(tmp_path)


def test_oversized_file(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"1099511627776 bytes, expected at most"):
        load_config(tmp_path)


def test_load(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", moe_config())
    assert load_config(tmp_path) == parsed(moe_config())
