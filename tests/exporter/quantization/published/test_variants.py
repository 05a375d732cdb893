"""Published checkpoints as they may be: repacked values against an element-by-element reference."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q2export.contracts.quantization import PackedQuantization, Scheme
from q2export.errors import CheckpointError, PackageError
from q2export.exporter.checkpoint.source import load_source
from q2export.exporter.quantization.published.repack import repack_checkpoint
from q2export.exporter.quantization.published.source import load_published
from tests.exporter.quantization.models import MOE, dequantize, read_tensors
from tests.exporter.quantization.published.checkpoints import (
    AWQ,
    DOWN_PROJ,
    GPTQ,
    K_PROJ,
    Q_PROJ,
    UP_PROJ,
    published_config,
    tensors_of,
    write_published,
)

SMALL, MEDIUM, LARGE = (
    {"hidden_size": 32 * n, "intermediate_size": 32 * m} for n, m in ((2, 3), (2, 4), (4, 4))
)


def check_values(folder: Path, tmp_path: Path, weights: dict[str, np.ndarray]) -> PackedQuantization:
    """Repack, load the result as any checkpoint in the packed form, and compare bit for bit."""
    source = load_published(folder)
    repack_checkpoint(source, tmp_path / "stored")
    packed = load_source(tmp_path / "stored")
    assert packed.config.quantization == source.quantization
    assert packed.packed.keys() == weights.keys()
    tensors = read_tensors(tmp_path / "stored" / "model.safetensors")
    for name, weight in packed.packed.items():
        values, wanted = dequantize(tensors, weight), weights[name]
        if weight.input_order is not None:
            wanted = wanted[:, tensors[weight.input_order]]
        if ".mlp." in name:  # of these rows and columns may be permuted where it makes no difference
            down = re.sub("gate_proj|up_proj", "down_proj", name)
            order = source.groups[down].order
            if order is not None:
                wanted = wanted[:, order] if name == down else wanted[order]
        assert np.array_equal(values, wanted), name
    return source.quantization


@pytest.mark.parametrize(
    ("section", "sizes", "scheme"),
    [
        (GPTQ, SMALL, Scheme(4, 32, False)),
        (GPTQ | {"sym": True}, SMALL, Scheme(4, 32, True)),
        (GPTQ | {"sym": True, "bits": 8, "checkpoint_format": "gptq_v2"}, SMALL, Scheme(8, 32, True)),
        (GPTQ | {"bits": 8, "sym": None}, SMALL, Scheme(8, 32, False)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, SMALL, Scheme(4, 32, False)),
        (GPTQ | {"group_size": 64}, SMALL, Scheme(4, 32, False)),
        (GPTQ | {"group_size": 64}, MEDIUM, Scheme(4, 64, False)),
        (GPTQ | {"group_size": -1}, MEDIUM, Scheme(4, 64, False)),
        (GPTQ | {"group_size": -1}, LARGE, Scheme(4, 128, False)),
        (GPTQ | {"group_size": 96}, LARGE, Scheme(4, 32, False)),
        (GPTQ | {"group_size": 128}, LARGE, Scheme(4, 128, False)),
        (GPTQ | {"group_size": 1024}, LARGE, Scheme(4, 128, False)),
        (GPTQ | {"desc_act": True}, SMALL, Scheme(4, 32, False)),
        (GPTQ | {"desc_act": True, "bits": 8, "group_size": 64}, SMALL, Scheme(8, 32, False)),
        (GPTQ | {"desc_act": True, "group_size": 64, "sym": True}, LARGE, Scheme(4, 64, True)),
        (GPTQ | {"desc_act": True, "group_size": -1}, SMALL, Scheme(4, 32, False)),
        (AWQ, SMALL, Scheme(4, 32, False)),
        (AWQ | {"group_size": -1}, LARGE, Scheme(4, 128, False)),
        (AWQ | {"group_size": 64}, LARGE, Scheme(4, 64, False)),
    ],
    ids=str,
)
def test_variants(section: dict[str, Any], sizes: dict[str, int], scheme: Scheme, tmp_path: Path) -> None:
    config = published_config(section, **sizes)
    tensors, weights = tensors_of(config)
    packed = check_values(write_published(tmp_path / "published", config, tensors), tmp_path, weights)
    ordered = section.get("desc_act", False) and 0 < section["group_size"] < sizes["hidden_size"]
    assert packed == PackedQuantization(*astuple(scheme), section["quant_method"], False, (), ordered)


@pytest.mark.parametrize("section", [GPTQ | {"sym": True}, AWQ], ids=str)
def test_mixture_of_experts(section: dict[str, Any], tmp_path: Path) -> None:
    config = published_config(section, **MOE)
    tensors, weights = tensors_of(config)
    assert len(weights) == 4 + 3 * (6 + 1)
    check_values(write_published(tmp_path / "published", config, tensors), tmp_path, weights)


def test_act_order_of_experts_that_agree(tmp_path: Path) -> None:
    """All that read the hidden state are ordered alike here, and each down has an order of its own."""
    config = published_config(GPTQ | {"desc_act": True}, **(MOE | {"moe_intermediate_size": 64}))
    tensors, weights = tensors_of(config)
    down = "model.layers.0.mlp.experts.1.down_proj"
    tensors[f"{down}.g_idx"] = tensors[f"{down}.g_idx"][::-1].copy()
    folder = write_published(tmp_path / "published", config, tensors)
    source = load_published(folder)
    gate = "model.layers.0.mlp.experts.{}.gate_proj.weight"
    assert not np.array_equal(source.row_orders[gate.format(0)], source.row_orders[gate.format(1)])
    del weights[f"{down}.weight"]
    repack_checkpoint(source, tmp_path / "stored")
    orders = [name for name in read_tensors(tmp_path / "stored/model.safetensors") if "input_order" in name]
    assert sorted(orders) == [
        "model.layers.0.mlp.experts.0.gate_proj.weight_input_order",
        "model.layers.0.self_attn.o_proj.weight_input_order",
        "model.layers.0.self_attn.q_proj.weight_input_order",
    ]


def test_modules_left_in_floating_point(tmp_path: Path) -> None:
    config = published_config(GPTQ | {"dynamic": {"-:.*q_proj": {}}})
    tensors, weights = tensors_of(config, skip=lambda name: name.startswith((Q_PROJ, UP_PROJ)))
    packed = check_values(write_published(tmp_path / "published", config, tensors), tmp_path, weights)
    assert packed.keep == (f"{Q_PROJ}.weight", f"{UP_PROJ}.weight")


def test_act_order_without_the_first_of_three(tmp_path: Path) -> None:
    config = published_config(GPTQ | {"desc_act": True})
    tensors, weights = tensors_of(config, skip=lambda name: name.startswith(Q_PROJ))
    check_values(write_published(tmp_path / "published", config, tensors), tmp_path, weights)
    assert f"{K_PROJ}.weight_input_order" in read_tensors(tmp_path / "stored" / "model.safetensors")


def test_one_module_with_zero_points_makes_all_store_them(tmp_path: Path) -> None:
    config = published_config(GPTQ | {"sym": True})
    tensors, weights = tensors_of(config)
    config["quantization_config"]["sym"] = False
    folder = write_published(tmp_path / "published", config, tensors)
    assert load_published(folder).quantization.symmetric
    tensors[f"{DOWN_PROJ}.qzeros"][1, 2] = 0x77776777  # output 19: 6 + 1
    scale = np.float32(tensors[f"{DOWN_PROJ}.scales"][1, 19])
    weights[f"{DOWN_PROJ}.weight"][19, 32:64] += scale
    write_published(folder, config, tensors)
    assert not check_values(folder, tmp_path, weights).symmetric


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_types_of_scales(dtype: type, tmp_path: Path) -> None:
    config = published_config(AWQ)
    tensors, weights = tensors_of(config)
    scales = {name: values.astype(dtype) for name, values in tensors.items() if name.endswith(".scales")}
    check_values(write_published(tmp_path / "published", config, tensors | scales), tmp_path, weights)


def test_group_indices_may_be_left_out_without_act_order(tmp_path: Path) -> None:
    config = published_config(GPTQ)
    tensors, weights = tensors_of(config)
    without = {name: values for name, values in tensors.items() if not name.endswith("g_idx")}
    check_values(write_published(tmp_path / "published", config, without), tmp_path, weights)


def test_tied_head_beside_the_embedding(tmp_path: Path) -> None:
    config = published_config(GPTQ, tie_word_embeddings=True)
    tensors, weights = tensors_of(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    folder = write_published(tmp_path / "published", config, tensors)
    check_values(folder, tmp_path, weights)
    tensors["lm_head.weight"][0, 0] += 1
    write_published(folder, config, tensors)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_published(folder)


def test_texts_of_the_checkpoint_come_along(tmp_path: Path) -> None:
    config = published_config(GPTQ, vocab_size=64)
    folder = write_published(tmp_path / "published", config, tensors_of(config)[0])
    (folder / "generation_config.json").write_text('{"top_k": 3}')
    repack_checkpoint(load_published(folder), tmp_path / "stored")
    assert sorted(file.name for file in (tmp_path / "stored").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    written = json.loads((tmp_path / "stored" / "config.json").read_text())
    assert written.pop("quantization_config")["quant_method"] == "q2export"
    assert written == {name: value for name, value in config.items() if name != "quantization_config"}
    with pytest.raises(PackageError, match="exists already"):
        repack_checkpoint(load_published(folder), tmp_path / "stored")
    repack_checkpoint(load_published(folder), tmp_path / "stored", overwrite=True)
