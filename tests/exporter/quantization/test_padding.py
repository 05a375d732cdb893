"""Intermediate sizes rounded up with zeros: which, where the zeros lie, and that the function is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from q2export.contracts.quantization import PackedQuantization, Quantization, Scheme
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.parameters import count_parameters, expected_parameters
from q2export.exporter.checkpoint.selection import select_weights
from q2export.exporter.checkpoint.source import load_source
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.quantization.padding import pad_intermediate
from q2export.exporter.quantization.round_to_nearest import round_to_nearest
from q2export.exporter.quantization.rows import read_rows
from q2export.exporter.reference import CheckpointReference
from tests.exporter.quantization.models import MOE, blocks_config, dequantize, model_config, read_tensors
from tests.helpers.checkpoints import header_bytes, make_header, random_weights, write_checkpoint, write_json

SCHEME = Scheme(4, 32, True)
# Layer 1 is dense; no size but the hidden one is a multiple of 32.
ODD = {**MOE, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 72, "mlp_only_layers": [1],
       "intermediate_size": 100}  # fmt: skip


def test_every_intermediate_size_is_rounded_up() -> None:
    padded = pad_intermediate(model_config(**ODD), PackedQuantization(4, 32, True))
    assert padded.sizes == {
        "moe_intermediate_size": (40, 64),
        "shared_expert_intermediate_size": (72, 96),
        "intermediate_size": (100, 128),
    }
    moe = padded.config.moe
    assert moe is not None
    found = moe.moe_intermediate_size, moe.shared_expert_intermediate_size, padded.config.intermediate_size
    assert found == (64, 96, 128)
    assert select_weights(padded.config, PackedQuantization(4, 32, True))


def test_sizes_that_fit_or_need_not_fit_stay() -> None:
    config = model_config(**ODD)
    kept = ("*.experts.*.down_proj.weight", "model.layers.1.*")
    padded = pad_intermediate(config, PackedQuantization(4, 32, True, keep=kept))
    assert padded.sizes == {"shared_expert_intermediate_size": (72, 96)}
    fitting = model_config(**MOE)
    padded = pad_intermediate(fitting, PackedQuantization(4, 32, True))
    assert padded.config is fitting and padded.sizes == {}


def padded_to(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    result = np.zeros(shape, np.float32)
    result[: values.shape[0], : values.shape[1]] = values
    return result


def test_zeros_fill_what_is_quantized_and_what_is_kept(tmp_path: Path) -> None:
    """Layer 0 is kept, but its matrices must have the size that config.json says, too."""
    config = blocks_config(intermediate_size=72)
    source = load_source(write_checkpoint(tmp_path / "model", config))
    how = Quantization("int4", keep=("model.layers.0.*",))
    result = quantize_checkpoint(source, tmp_path / "out", how)
    assert result.padded == {"intermediate_size": (72, 96)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 96
    assert count_parameters(load_source(tmp_path / "out").config) == count_parameters(source.config)
    assert count_parameters(source.config) == sum(values.size for values in random_weights(config).values())
    again, tensors = load_source(tmp_path / "out"), read_tensors(tmp_path / "out" / "model.safetensors")
    for name, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96))):
        kept, quantized = (f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 1))
        values = random_weights(config)
        assert np.array_equal(tensors[kept], padded_to(values[kept], shape))
        expected = round_to_nearest(padded_to(values[quantized], shape), SCHEME).dequantized(SCHEME)
        found = dequantize(tensors, again.packed[quantized])
        assert np.array_equal(found, expected)
        assert (
            not found[values[quantized].shape[0] :].any() and not found[:, values[quantized].shape[1] :].any()
        )


def test_the_function_is_the_same(tmp_path: Path) -> None:
    """The padded model against one of the original sizes that has the same weights without the zeros."""
    config = blocks_config(**ODD)
    source = load_source(write_checkpoint(tmp_path / "model", config))
    quantize_checkpoint(source, tmp_path / "padded", Quantization("int8", block_size=64))
    padded = load_source(tmp_path / "padded")
    values = ParameterValues(padded.checkpoint, padded.packed)
    parameters = list(expected_parameters(source.config).items())
    (tmp_path / "cut").mkdir()
    write_json(tmp_path / "cut" / "config.json", config)
    with (tmp_path / "cut" / "model.safetensors").open("wb") as file:
        file.write(header_bytes(make_header(parameters, "F32")))
        for name, shape in parameters:
            file.write(values.read(name)[tuple(map(slice, shape))].tobytes())
    tokens = [[5, 77, 3, 130, 9, 9, 1]]
    found, expected, exact = (
        CheckpointReference(one).run(tokens).logits[0]
        for one in (padded, load_source(tmp_path / "cut"), source)
    )
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 0.05


def test_rows_beyond_the_matrix_are_zeros(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config(intermediate_size=72), dtype="F16"))
    ref = source.checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"]
    for first, count, found in ((0, 10, 10), (70, 10, 2), (72, 5, 0), (90, 6, 0)):
        rows = read_rows(ref, (96, 70), first, count)
        assert rows.bits.shape == (count, 70) and rows.source_bytes == found * 64 * 2
        assert rows.bits[:found, :64].all() and not rows.bits[found:].any() and not rows.bits[:, 64:].any()
