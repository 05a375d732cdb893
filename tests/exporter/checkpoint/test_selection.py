"""Which weights are quantized, and what is refused."""

from __future__ import annotations

import pytest

from q2export.contracts.quantization import PackedQuantization, Scheme
from q2export.errors import ProfileError
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.checkpoint.selection import select_weights
from tests.exporter.quantization.models import MOE, model_config

SCHEME = Scheme(4, 32, True)


def selected(packed: PackedQuantization, **config: object) -> dict[str, PackedWeight]:
    return select_weights(model_config(**config), packed)


def test_all_matrices_of_a_dense_model_are_quantized() -> None:
    found = selected(PackedQuantization(4, 32, True))
    matrices = [name for name, shape in expected_parameters(model_config()).items() if len(shape) == 2]
    assert list(found) == matrices
    weight = found["model.layers.1.mlp.down_proj.weight"]
    assert (weight.shape, weight.scheme, weight.tensor) == ((64, 96), SCHEME, weight.name)


def test_neither_gate_of_a_mixture_of_experts_is_quantized() -> None:
    found = selected(PackedQuantization(4, 32, True), **MOE)
    names = [name for name, shape in expected_parameters(model_config(**MOE)).items() if len(shape) == 2]
    left = [name for name in names if name not in found]
    assert left == [
        f"model.layers.{layer}.mlp.{gate}.weight"
        for layer in (0, 1)
        for gate in ("gate", "shared_expert_gate")
    ]


def test_embedding_and_head_are_quantized_if_asked_for() -> None:
    outer = {"model.embed_tokens.weight", "lm_head.weight"}
    assert outer <= set(selected(PackedQuantization(4, 32, True)))
    assert not outer & set(selected(PackedQuantization(4, 32, True, embedding=False)))
    assert "lm_head.weight" not in selected(PackedQuantization(4, 32, True), tie_word_embeddings=True)


def test_rows_of_gate_and_up_alternate_where_both_are_quantized() -> None:
    found = selected(PackedQuantization(4, 32, True, keep=("*.layers.0.*.experts.3.up_proj.weight",)), **MOE)
    gate, up = (found[f"model.layers.0.mlp.experts.2.{name}_proj.weight"] for name in ("gate", "up"))
    assert gate.tensor == up.tensor == "model.layers.0.mlp.experts.2.gate_up_proj.weight"
    assert (gate.first_row, up.first_row, gate.row_step, up.row_step) == (0, 1, 2, 2)
    assert gate.codes_shape == (64, 32) and gate.scale_shape == (64, 2)
    alone = found["model.layers.0.mlp.experts.3.gate_proj.weight"]
    assert (alone.tensor, alone.row_step, alone.codes_shape) == (alone.name, 1, (32, 32))
    shared = found["model.layers.0.mlp.shared_expert.gate_proj.weight"]
    assert (shared.tensor, shared.row_step) == (shared.name, 1)


def test_patterns_keep_weights() -> None:
    found = selected(PackedQuantization(4, 32, True, keep=("model.layers.0.*", "*.[qk]_proj.weight")))
    assert not any(name.startswith("model.layers.0.") for name in found)
    assert not any("q_proj" in name or "k_proj" in name for name in found)
    assert "model.layers.1.self_attn.v_proj.weight" in found


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    name = "model.layers.1.mlp.dwn_proj.weight"
    right = name.replace("dwn", "down")
    with pytest.raises(ProfileError, match=f"'{name}' matches no weight .*; did you mean '{right}'"):
        selected(PackedQuantization(4, 32, True, keep=(name,)))
    with pytest.raises(ProfileError, match="'zzz' matches no weight of the model; patterns are those of"):
        selected(PackedQuantization(4, 32, True, keep=("*_proj.weight", "zzz")))


def test_the_head_of_a_tied_model_cannot_be_kept_alone() -> None:
    with pytest.raises(ProfileError, match="the head is tied to the embedding: keep"):
        selected(PackedQuantization(4, 32, True, keep=("lm_head.*",)), tie_word_embeddings=True)


def test_a_block_size_that_does_not_divide_is_refused_with_advice() -> None:
    with pytest.raises(ProfileError) as refused:
        selected(PackedQuantization(4, 128, True), hidden_size=128, intermediate_size=192)
    message = str(refused.value)
    assert "128 does not divide the 192 columns of 'model.layers.0.mlp.down_proj.weight'" in message
    assert "use block size 32 or 64" in message and "'*.down_proj.weight'" in message
    with pytest.raises(ProfileError, match=r"the 72 columns .*; no block size does; keep such .*'\*\.down"):
        selected(PackedQuantization(4, 32, True), intermediate_size=72)
    assert selected(PackedQuantization(4, 32, True, keep=("*.down_proj.weight",)), intermediate_size=72)


def test_orders_of_the_input_are_held_by_the_first_weight_that_reads_it() -> None:
    assert not any(weight.input_order for weight in selected(PackedQuantization(4, 32, True), **MOE).values())
    found = selected(PackedQuantization(4, 32, True, input_order=True), **MOE)
    holders = [name for name, weight in found.items() if weight.holds_input_order and "layers.1." not in name]
    layer = "model.layers.0"
    assert holders == [
        f"{layer}.self_attn.q_proj.weight",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.mlp.experts.0.gate_proj.weight",
        "lm_head.weight",
    ]
    assert found[f"{layer}.mlp.experts.5.up_proj.weight"].input_order == f"{holders[2]}_input_order"
    assert found[f"{layer}.mlp.experts.5.down_proj.weight"].input_order is None
