"""Expected parameters against transformers' own modules, and checkpoints that do not hold exactly these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.config import load_config, parse_config
from q2export.exporter.checkpoint.folder import SINGLE_FILE, open_checkpoint
from q2export.exporter.checkpoint.parameters import check_parameters, expected_parameters
from tests.helpers.checkpoints import tiny_config, write_checkpoint, write_json
from tests.helpers.shared import REAL_MODELS, real_config

MODELS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM)}


def build(data: dict[str, object]) -> torch.nn.Module:
    config_class, model_class = MODELS[str(data["model_type"])]
    return model_class(config_class(**{key: value for key, value in data.items() if key != "model_type"}))


def reference_parameters(data: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' state dict, its stacked experts taken apart as they are on disk."""
    with torch.device("meta"):
        state = build(data).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            experts, rows, columns = tensor.shape
            for expert in range(experts):
                for part in ("gate_proj", "up_proj"):
                    shapes[name.replace("gate_up_proj", f"{expert}.{part}.weight")] = (rows // 2, columns)
        elif name.endswith("experts.down_proj"):
            for expert in range(tensor.shape[0]):
                shapes[name.replace("down_proj", f"{expert}.down_proj.weight")] = tuple(tensor.shape[1:])
        else:
            shapes[name] = tuple(tensor.shape)
    if data.get("tie_word_embeddings"):
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models(name: str) -> None:
    data = real_config(name)
    assert expected_parameters(parse_config(data, name)) == reference_parameters(data)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 6, "num_key_value_heads": 14},
        {"model_type": "qwen2_moe"},
        {"model_type": "qwen2_moe", "qkv_bias": False, "tie_word_embeddings": True},
        {"model_type": "qwen2_moe", "decoder_sparse_step": 2, "num_hidden_layers": 5},
        {"model_type": "qwen2_moe", "mlp_only_layers": [0, 3], "num_hidden_layers": 5},
        {"model_type": "qwen2_moe", "mlp_only_layers": [1], "decoder_sparse_step": 2, "num_hidden_layers": 5},
    ],
    ids=str,
)
def test_tiny_models(overrides: dict[str, object], tmp_path: Path) -> None:
    data = tiny_config(**overrides)
    assert expected_parameters(parse_config(data, "tiny")) == reference_parameters(data)
    build(data).save_pretrained(tmp_path)  # what transformers writes is what this package reads
    config = load_config(tmp_path)
    assert config == parse_config(data, "tiny")
    assert config.warnings == ()
    check_parameters(open_checkpoint(tmp_path), config)


def test_model_order() -> None:
    names = list(expected_parameters(parse_config(tiny_config(), "tiny")))
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert [name.split(".")[2] for name in names[1:-2]] == ["0"] * 12 + ["1"] * 12


def rewrite(folder: Path, **tensors: np.ndarray | None) -> None:
    """Add or replace tensors of a single-file checkpoint; ``None`` removes one. Dots are written ``__``."""
    weights = load_file(folder / SINGLE_FILE)
    weights |= {name.replace("__", "."): values for name, values in tensors.items() if values is not None}
    for name, values in tensors.items():
        if values is None:
            del weights[name.replace("__", ".")]
    save_file(weights, folder / SINGLE_FILE)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_parameters(open_checkpoint(folder), load_config(folder))
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def test_missing_surplus_and_wrong_shape_in_one_message(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    bias = np.zeros(57, "<f4")
    rewrite(
        tmp_path, model__norm__weight=None, model__extra=bias, model__layers__1__self_attn__q_proj__bias=bias
    )
    message = refusal(tmp_path)
    assert "(qwen2, 2 layers)" in message
    assert "1 missing: 'model.norm.weight'" in message
    assert "1 surplus: 'model.extra'" in message
    assert "'model.layers.1.self_attn.q_proj.bias' is [57], expected [56] (model.safetensors)" in message


def test_transposed_weight(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    rewrite(tmp_path, model__layers__0__mlp__down_proj__weight=np.zeros((72, 56), "<f4"))
    assert "down_proj.weight' is [72, 56], expected [56, 72]" in refusal(tmp_path)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    write_json(tmp_path / "config.json", tiny_config(num_hidden_layers=9))
    message = refusal(tmp_path)
    assert "84 missing: 'model.layers.2." in message
    assert "and 79 more;" in message
    assert len(message) < 700


def test_dense_weights_for_a_mixture_of_experts(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    write_json(tmp_path / "config.json", tiny_config(model_type="qwen2_moe"))
    message = refusal(tmp_path)
    assert "46 missing: 'model.layers.0.mlp.gate.weight', 'model.layers.0.mlp.experts.0." in message
    assert "6 surplus: 'model.layers.0.mlp.gate_proj.weight'" in message


def test_untied_head_missing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(tie_word_embeddings=True))
    write_json(tmp_path / "config.json", tiny_config())
    assert "1 missing: 'lm_head.weight'" in refusal(tmp_path)


def test_tied_head_stored_twice(tmp_path: Path) -> None:
    """Equal bits are the same model; other values are another one, which transformers would run untied."""
    data = tiny_config(tie_word_embeddings=True)
    embedding = load_file(write_checkpoint(tmp_path, data) / SINGLE_FILE)["model.embed_tokens.weight"]
    rewrite(tmp_path, lm_head__weight=embedding)
    check_parameters(open_checkpoint(tmp_path), load_config(tmp_path))
    assert "lm_head.weight" not in expected_parameters(load_config(tmp_path))

    changed = embedding.copy()
    changed[130, 55] += 1e-3
    for other in (changed, embedding[:130], embedding.astype("<f2")):
        rewrite(tmp_path, lm_head__weight=other)
        assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(tmp_path)


def test_buffers_of_old_checkpoints_are_surplus(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    rewrite(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(2, "<f4"))
    assert "1 surplus: 'model.layers.0.self_attn.rotary_emb.inv_freq'" in refusal(tmp_path)
