"""The layout of the file: what must hold of every model, and that the format's own library reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors import safe_open

from q2export.contracts.quantization import PackedQuantization, Scheme
from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.exporter.checkpoint.packed_layout import (
    ALIGNMENT,
    PADDING_PREFIX,
    Layout,
    parameter_groups,
    plan_layout,
)
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.checkpoint.selection import select_weights
from tests.exporter.quantization.models import MOE, model_config

PUBLISHED = ("qwen2-0.5b", "qwen2-57b-a14b", "qwen2-72b")
SYMMETRIC, ASYMMETRIC = PackedQuantization(4, 32, True), PackedQuantization(4, 32, False)
MODELS: list[tuple[dict[str, object], PackedQuantization]] = [
    ({}, SYMMETRIC),
    ({"tie_word_embeddings": True}, ASYMMETRIC),
    (MOE, ASYMMETRIC),
    (
        MOE,
        PackedQuantization(8, 32, False, keep=("model.layers.0.*", "*.experts.1.gate_proj.weight")),
    ),
    (MOE, PackedQuantization(4, 32, True, embedding=False, input_order=True)),
]
BY_MODEL = pytest.mark.parametrize(("config", "packed"), MODELS, ids=[str(i) for i in range(len(MODELS))])


def layout_of(config: ModelConfig, packed: PackedQuantization, dtype: str = "BF16") -> Layout:
    return plan_layout(config, packed, dict.fromkeys(expected_parameters(config), dtype))


def published(repository: Path, name: str) -> ModelConfig:
    path = repository / "benchmarks" / "cases" / "models" / f"{name}.json"
    return parse_config(json.loads(path.read_text()), name)


def check_run(layout: Layout, names: Sequence[str | None]) -> None:
    """These tensors follow each other without a gap and begin on a cache line."""
    tensors = [layout.tensors[name] for name in names if name is not None]
    assert tensors and tensors[0].offset % ALIGNMENT == 0
    for before, after in pairwise(tensors):
        assert before.offset + before.nbytes == after.offset


def check_layout(layout: Layout, config: ModelConfig, packed: PackedQuantization) -> None:
    """What must hold of any layout."""
    weights = select_weights(config, packed)
    placed = list(layout.tensors.values())
    assert placed[0].offset == len(layout.header) and len(layout.header) % ALIGNMENT == 0
    for before, after in pairwise(placed):
        assert before.offset + before.nbytes == after.offset
    assert placed[-1].offset + placed[-1].nbytes == layout.file_bytes
    expected = {name for name in expected_parameters(config) if name not in weights}
    for weight in weights.values():
        expected |= {weight.tensor, weight.scale_name, weight.zero_point_name or weight.tensor}
        expected |= {weight.input_order} if weight.input_order else set()
        assert layout.tensors[weight.tensor].shape == weight.codes_shape
        assert layout.tensors[weight.scale_name].dtype == "F16"
    assert {one.name for one in placed if not one.name.startswith(PADDING_PREFIX)} == expected
    assert all(one.nbytes < ALIGNMENT for one in placed if one.name.startswith(PADDING_PREFIX))
    assert [weight for group in layout.groups for weight in group] == [
        weights[name] for names in parameter_groups(config) for name in names if name in weights
    ]
    for group in layout.groups:
        check_run(layout, list(dict.fromkeys(weight.tensor for weight in group)))
        check_run(layout, list(dict.fromkeys(weight.scale_name for weight in group)))
        if not packed.symmetric:
            check_run(layout, list(dict.fromkeys(weight.zero_point_name for weight in group)))
    assert list(layout.plain) == [one.name for one in placed if one.name in layout.plain]
    assert set(layout.plain) == expected & set(expected_parameters(config)) - set(weights)


@BY_MODEL
@pytest.mark.parametrize("vocab_size", [128, 131])
def test_small_models(config: dict[str, object], packed: PackedQuantization, vocab_size: int) -> None:
    model = model_config(**{**config, "vocab_size": vocab_size})
    for dtype in ("BF16", "F32"):
        check_layout(layout_of(model, packed, dtype), model, packed)


@BY_MODEL
def test_the_safetensors_library_sees_the_same_tensors(
    config: dict[str, object], packed: PackedQuantization, tmp_path: Path
) -> None:
    layout = layout_of(model_config(**config), packed)
    with (tmp_path / "zeros.safetensors").open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.file_bytes)
    with safe_open(tmp_path / "zeros.safetensors", "pt") as opened:
        assert sorted(opened.keys()) == sorted(layout.tensors)
        for name, one in layout.tensors.items():
            found = opened.get_slice(name)
            assert (found.get_dtype(), tuple(found.get_shape())) == (one.dtype, one.shape)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("scheme", [Scheme(4, 32, True), Scheme(4, 128, False), Scheme(8, 64, True)], ids=str)
def test_published_models_need_no_padding(name: str, scheme: Scheme, repository: Path) -> None:
    config, packed = published(repository, name), PackedQuantization(*astuple(scheme))
    layout = layout_of(config, packed)
    check_layout(layout, config, packed)
    assert not any(one.startswith(PADDING_PREFIX) for one in layout.tensors)
    assert len(layout.header) < 4 << 20


def test_the_joined_matrices_of_an_attention_and_a_dense_mlp() -> None:
    layout = layout_of(model_config(), ASYMMETRIC)
    layer = "model.layers.1"
    for suffix in ("", "_scale", "_zero_point"):
        check_run(layout, [f"{layer}.self_attn.{name}_proj.weight{suffix}" for name in "qkv"])
        check_run(layout, [f"{layer}.mlp.{name}_proj.weight{suffix}" for name in ("gate", "up")])
    check_run(layout, [f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"])


def test_the_experts_of_a_layer_are_one_region() -> None:
    layout = layout_of(model_config(**MOE), ASYMMETRIC)
    experts = [f"model.layers.0.mlp.experts.{expert}" for expert in range(6)]
    for suffix in ("", "_scale", "_zero_point"):
        check_run(layout, [f"{expert}.gate_up_proj.weight{suffix}" for expert in experts])
        check_run(layout, [f"{expert}.down_proj.weight{suffix}" for expert in experts])


def test_what_is_kept_is_joined_too_if_its_types_agree() -> None:
    config = model_config()
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    packed = PackedQuantization(4, 32, True, keep=("model.layers.0.*",))
    check_run(layout_of(config, packed), names)
    dtypes = dict.fromkeys(expected_parameters(config), "BF16") | {names[1]: "F32"}
    layout = plan_layout(config, packed, dtypes)
    for name in names:
        check_run(layout, [name])
    assert layout.tensors[names[1]].dtype == "F32"


def test_the_bytes_of_a_published_model(repository: Path) -> None:
    """0.5B: 494,032,768 values, all but 54,144 of them (norms and biases) in blocks of 32."""
    layout = layout_of(published(repository, "qwen2-0.5b"), SYMMETRIC)
    quantized = sum(weight.shape[0] * weight.shape[1] for group in layout.groups for weight in group)
    plain = sum(layout.tensors[name].nbytes for name in layout.plain)
    assert quantized + plain // 2 == 494_032_768
    assert layout.file_bytes == len(layout.header) + quantized // 2 + quantized // 32 * 2 + plain
