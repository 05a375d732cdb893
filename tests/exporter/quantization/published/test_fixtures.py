"""Checkpoints that AutoGPTQ, GPTQModel and AutoAWQ wrote: stored is what they multiply with, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from q2export.contracts.quantization import PackedQuantization
from q2export.exporter.checkpoint.selection import select_weights
from q2export.exporter.quantization.published.repack import repack_weights
from q2export.exporter.quantization.published.source import PublishedSource, load_published
from tests.exporter.quantization.models import dequantize, read_tensors

FOLDER = Path(__file__).parents[3] / "data" / "published"

EMBEDDING = "model.embed_tokens.weight"
STORED = {
    "autogptq-int4": PackedQuantization(4, 32, True, "gptq", False),
    "autogptq-int8": PackedQuantization(8, 32, False, "gptq", True, (EMBEDDING,)),
    "autogptq-int8-act-order": PackedQuantization(8, 32, True, "gptq", False, (), True),
    "autoawq": PackedQuantization(4, 32, False, "awq", False),
    "gptqmodel-act-order": PackedQuantization(4, 32, False, "gptq", False, (), True),
    "gptqmodel-v2": PackedQuantization(4, 32, False, "gptq", False),
    "gptqmodel-awq": PackedQuantization(4, 64, False, "awq", False),
    "gptqmodel-moe": PackedQuantization(4, 32, True, "gptq", False),
}


def repacked(
    name: str, path: Path, **options: int
) -> tuple[PublishedSource, dict[str, npt.NDArray[np.float32]]]:
    """The fixture, and every weight of its repacked file with the columns in their own order."""
    source = load_published(FOLDER / name)
    repack_weights(source, path, **options)
    tensors = read_tensors(path)
    values = {}
    for weight in select_weights(source.config, source.quantization).values():
        packed = dequantize(tensors, weight)
        if weight.input_order is not None:
            straight = np.empty_like(packed)
            straight[:, tensors[weight.input_order]] = packed
            packed = straight
        values[weight.name] = packed
    return source, values


def dequantized(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """What the package that wrote the fixture makes of it."""
    return load_file(FOLDER / "dequantized" / f"{name}.safetensors")


@pytest.mark.parametrize("name", STORED)
def test_values_are_those_of_the_package_that_wrote_them(name: str, tmp_path: Path) -> None:
    source, values = repacked(name, tmp_path / "out.safetensors")
    assert source.quantization == STORED[name]
    expected = dequantized(name)
    assert values.keys() == expected.keys()
    original = read_tensors(FOLDER / name / "model.safetensors") if "act-order" in name else {}
    for weight, found in values.items():
        wanted = expected[weight]
        # Under act-order the columns of down are sorted by group, and so are the rows of gate and up.
        down = weight.replace("gate_proj", "down_proj").replace("up_proj", "down_proj")
        if original and "mlp" in weight:
            order = sorted(range(96), key=original[down.replace("weight", "g_idx")].tolist().__getitem__)
            wanted = wanted[:, order] if weight == down else wanted[order]
        assert np.array_equal(found, wanted), weight
        assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("name", ["autogptq-int8-act-order", "gptqmodel-act-order"])
def test_reordered_rows_give_the_same_function(name: str, tmp_path: Path) -> None:
    _, values = repacked(name, tmp_path / "out.safetensors")
    expected = dequantized(name)
    x = np.random.default_rng(0).standard_normal((3, 64))

    def mlp(weights: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        gate, up, down = (
            weights[f"model.layers.0.mlp.{part}_proj.weight"].astype(np.float64)
            for part in ("gate", "up", "down")
        )
        return (x @ gate.T / (1 + np.exp(-(x @ gate.T))) * (x @ up.T)) @ down.T

    assert not np.array_equal(
        values["model.layers.0.mlp.gate_proj.weight"], expected["model.layers.0.mlp.gate_proj.weight"]
    )
    np.testing.assert_allclose(mlp(values), mlp(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STORED)
def test_the_size_of_a_tile_changes_nothing(name: str, tmp_path: Path) -> None:
    source = load_published(FOLDER / name)
    whole, tiles = tmp_path / "whole.safetensors", tmp_path / "tiles.safetensors"
    repack_weights(source, whole)
    repack_weights(source, tiles, tile_bytes=700)
    assert whole.read_bytes() == tiles.read_bytes()


@pytest.mark.parametrize("name", STORED)
def test_all_else_is_copied(name: str, tmp_path: Path) -> None:
    source = load_published(FOLDER / name)
    seen: list[int] = []
    result = repack_weights(source, tmp_path / "out.safetensors", advance=seen.append)
    packed, original = (
        read_tensors(tmp_path / "out.safetensors"),
        read_tensors(FOLDER / name / "model.safetensors"),
    )
    copied = [key for key in original if key.endswith(".weight") or (key.endswith(".bias") and key in packed)]
    assert {"model.norm.weight", EMBEDDING, "model.layers.0.self_attn.k_proj.bias"} <= set(copied)
    for key in copied:
        assert packed[key].dtype == original[key].dtype
        assert packed[key].tobytes() == original[key].tobytes()
    zeros = "model.layers.0.self_attn.o_proj.bias"
    assert zeros not in packed
    assert (zeros in original) == name.startswith("autogptq")
    assert sum(seen) == source.nbytes == result.source_bytes
    assert result.stored_bytes == (tmp_path / "out.safetensors").stat().st_size
    assert result.weights == len(dequantized(name))
