"""The quantizer that calibrates: what it reads, that it is the same always, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import CalibrationError
from q2export.exporter.checkpoint.folder import TensorRef
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.selection import select_weights
from q2export.exporter.checkpoint.source import Source, load_source
from q2export.exporter.graph.ops.moe import route
from q2export.exporter.quantization.calibrated.model import ModelInputs
from q2export.exporter.quantization.calibrated.quantizer import Calibrated
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.quantization.quantize import QuantizeResult
from q2export.exporter.reference import CheckpointReference
from tests.exporter.quantization.models import MOE, blocks_config
from tests.helpers.checkpoints import write_checkpoint

TOKENS = np.random.default_rng(0).integers(0, 131, 2000).tolist()
SEQUENCES = [TOKENS[:40], TOKENS[40:80], TOKENS[80:103]]
HOW = Quantization("int4", method="gptq", symmetric=False)


def values_of(source: Source) -> ParameterValues:
    return ParameterValues(source.checkpoint, source.packed)


def inputs_by_hooks(source: Source, weights: ParameterValues) -> dict[str, Tensor]:
    """What each weight reads, of all sequences, recorded while the reference runs; experts routed by hand."""
    reference, found = CheckpointReference(source), dict[str, Tensor]()
    hidden = [reference.embed(sequence) for sequence in SEQUENCES]
    for index in range(source.config.num_hidden_layers):
        layer, records = reference.layer(index), dict[str, list[Tensor]]()
        for name, module in layer.module.named_modules():
            if isinstance(module, nn.Linear):
                parts = records.setdefault(name, [])
                module.register_forward_pre_hook(lambda _, read, parts=parts: parts.append(read[0]))
        hidden = [layer(one) for one in hidden]
        prefix = f"model.layers.{index}"
        found |= {f"{prefix}.{name}.weight": torch.cat(parts) for name, parts in records.items() if parts}
        if source.config.moe is not None:
            found |= expert_inputs(source, index, found[f"{prefix}.mlp.gate.weight"], weights)
    found["lm_head.weight"] = torch.cat(reference.final_norm(hidden))
    return found


def expert_inputs(source: Source, index: int, hidden: Tensor, weights: ParameterValues) -> dict[str, Tensor]:
    prefix, moe = f"model.layers.{index}.mlp", source.config.moe
    assert moe is not None
    logits = hidden @ torch.from_numpy(weights.read(f"{prefix}.gate.weight")).T
    chosen, found = route(logits, moe.num_experts_per_tok, moe.norm_topk_prob)[1], {}
    for expert in range(moe.num_experts):
        read = hidden[(chosen == expert).any(1)]
        gate, up = (
            read @ torch.from_numpy(weights.read(f"{prefix}.experts.{expert}.{name}_proj.weight")).T
            for name in ("gate", "up")
        )
        for name, value in (("gate", read), ("up", read), ("down", torch.nn.functional.silu(gate) * up)):
            found[f"{prefix}.experts.{expert}.{name}_proj.weight"] = value
    return found


@pytest.mark.parametrize("config", [{}, MOE], ids=["dense", "moe"])
def test_a_weight_reads_what_the_quantized_weights_before_it_give(
    config: dict[str, object], tmp_path: Path
) -> None:
    """The model is filled with weights that are already rounded: its inputs are then those of that model."""
    how = Quantization("int4", keep=("*.layers.1.self_attn.o_proj.weight",))
    original = load_source(write_checkpoint(tmp_path / "model", blocks_config(**config)))
    quantize_checkpoint(original, tmp_path / "out", how)
    rounded = load_source(tmp_path / "out")
    weights, values = select_weights(original.config, PackedQuantization.of(how)), values_of(rounded)
    expected = inputs_by_hooks(rounded, values)
    inputs = ModelInputs(original.config, original.checkpoint.tensors, weights, SEQUENCES)
    keys: dict[str, str] = {}
    for name in weights:
        read = inputs.of(name)
        if read is None:
            assert name == "model.embed_tokens.weight"
        else:
            keys[name] = read[0]
            torch.testing.assert_close(torch.cat(list(read[1])), expected[name], rtol=1e-4, atol=1e-5)
        for first, rows in values.slices(name):
            inputs.fill(name, first, rows)
    attention = "model.layers.0.self_attn."
    assert len({keys[f"{attention}{name}_proj.weight"] for name in "qkv"}) == 1
    assert len({keys[f"{attention}{name}_proj.weight"] for name in "qo"}) == 2
    assert keys["model.layers.0.self_attn.q_proj.weight"] != keys["model.layers.1.self_attn.q_proj.weight"]


def calibrate(source: Source, output: Path, how: Quantization = HOW) -> QuantizeResult:
    sequences = [TOKENS[first : first + 50] for first in range(0, len(TOKENS), 50)]
    return quantize_checkpoint(source, output, how, quantizer=Calibrated(source, how, sequences))


def test_a_tied_embedding_is_calibrated_as_the_head_of_the_unquantized_model(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config(tie_word_embeddings=True)))
    weights = select_weights(source.config, PackedQuantization.of(HOW))
    inputs = ModelInputs(source.config, source.checkpoint.tensors, weights, SEQUENCES)
    read = inputs.of("model.embed_tokens.weight")
    assert read is not None
    expected = inputs_by_hooks(source, values_of(source))["lm_head.weight"]
    torch.testing.assert_close(torch.cat(list(read[1])), expected, rtol=1e-4, atol=1e-5)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path / "model", blocks_config(**MOE), dtype="BF16"))
    for name in ("a", "b"):
        calibrate(source, tmp_path / name)
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]


def test_an_expert_that_few_tokens_reach_is_rounded_to_nearest_and_named(tmp_path: Path) -> None:
    """The router of layer 1 never chooses expert 2: its logits are lowest by far for every token."""
    source = load_source(write_checkpoint(tmp_path / "model", blocks_config(**MOE)))
    router, norm = (
        source.checkpoint.tensors[f"model.layers.1.{name}.weight"]
        for name in ("mlp.gate", "post_attention_layernorm")
    )
    overwrite(norm, np.eye(64, dtype=np.float32)[0] * 8)  # only the first feature is left, of either sign
    rows = np.zeros((6, 64), np.float32)
    rows[:2, 0], rows[3:5, 0] = 1, -1
    overwrite(router, rows)
    result = calibrate(source, tmp_path / "out")
    rounded = {one.name for one in result.weights if one.method == "round-to-nearest"}
    experts = {
        f"model.layers.1.mlp.experts.{i}.{name}_proj.weight"
        for i in (2, 5)
        for name in ("gate", "up", "down")
    }
    assert {name for name in rounded if "layers.0" not in name} == {"model.embed_tokens.weight", *experts}
    assert all(one.method == "gptq" for one in result.weights if "self_attn" in one.name)


def overwrite(ref: TensorRef, values: np.ndarray) -> None:
    with ref.file.open("r+b") as file:
        file.seek(ref.offset)
        file.write(np.ascontiguousarray(values, "<f4").tobytes())


def test_a_text_too_short_for_any_weight_is_refused(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    with pytest.raises(CalibrationError, match="has 63 tokens; a model with hidden_size 64 needs at"):
        Calibrated(source, HOW, [TOKENS[:40], TOKENS[40:63]])
