"""Published-style checkpoints packed element by element, straight from the description of the formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.parameters import expected_parameters
from tests.exporter.quantization.models import blocks_config

Tensors = dict[str, npt.NDArray[Any]]

AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs of the nibbles of a word, lowest first
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
Q_PROJ, K_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
GATE_PROJ, UP_PROJ, DOWN_PROJ = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))


def gptq_words(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int32]:
    """Pack rows: word ``[i, j]`` has rows ``i * 32 / bits`` and on of column ``j``, the first lowest."""
    per_word = 32 // bits
    words = np.zeros((codes.shape[0] // per_word, codes.shape[1]), np.uint32)
    for row, column in np.ndindex(codes.shape):
        words[row // per_word, column] |= np.uint32(int(codes[row, column]) << bits * (row % per_word))
    return words.view(np.int32)


def awq_words(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Pack columns: word ``[i, j]`` has columns ``8 j`` to ``8 j + 7`` of row ``i`` in AWQ's order."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for row, word in np.ndindex(words.shape):
        for nibble, output in enumerate(AWQ_NIBBLES):
            words[row, word] |= np.uint32(int(codes[row, 8 * word + output]) << 4 * nibble)
    return words.view(np.int32)


def packed_module(
    module: str, shape: tuple[int, int], section: Mapping[str, Any], rng: np.random.Generator
) -> tuple[Tensors, npt.NDArray[np.float32]]:
    """A module with random codes, and the float32 weight ``[out, in]`` it stands for."""
    (outputs, inputs), bits = shape, section["bits"]
    size = inputs if section["group_size"] == -1 else section["group_size"]
    groups = np.arange(inputs) // size
    codes = rng.integers(0, 1 << bits, (inputs, outputs))
    default = 1 << (bits - 1)
    count = int(groups.max()) + 1
    zero_points = rng.integers(1, 1 << bits, (count, outputs))
    if section.get("sym"):
        zero_points[:] = default
    scales = rng.uniform(0.01, 0.02, (count, outputs)).astype(np.float16)
    tensors: Tensors = {"scales": scales}
    if section["quant_method"] == "awq":
        tensors |= {"qweight": awq_words(codes), "qzeros": awq_words(zero_points)}
    else:
        if section.get("desc_act"):
            groups = np.random.default_rng(inputs).permutation(groups)
        offset = 0 if section.get("checkpoint_format") == "gptq_v2" else 1
        qzeros = np.ascontiguousarray(gptq_words((zero_points - offset).T, bits).T)
        tensors |= {"qweight": gptq_words(codes, bits), "qzeros": qzeros, "g_idx": groups.astype(np.int32)}
    weight = np.empty(shape, np.float32)
    for i, o in np.ndindex(codes.shape):
        weight[o, i] = float(codes[i, o] - zero_points[groups[i], o]) * float(scales[groups[i], o])
    return {f"{module}.{name}": values for name, values in tensors.items()}, weight


def tensors_of(
    config: Mapping[str, Any], skip: Callable[[str], bool] = lambda name: False
) -> tuple[Tensors, dict[str, npt.NDArray[np.float32]]]:
    """The tensors of a checkpoint, every projection packed that is not skipped, and the packed values."""
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    weights = {}
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    for name, shape in expected_parameters(parse_config(plain, "test config")).items():
        if name.endswith("_proj.weight") and not skip(name):
            module = name.removesuffix(".weight")
            packed, weights[name] = packed_module(module, shape, config["quantization_config"], rng)
            tensors |= packed
        else:
            tensors[name] = rng.standard_normal(shape).astype(np.float16)
    return tensors, weights


def published_config(section: Mapping[str, Any], **overrides: object) -> dict[str, Any]:
    """``config.json`` of a model of one layer with this ``quantization_config``."""
    return {**blocks_config(num_hidden_layers=1, **overrides), "quantization_config": dict(section)}


def write_published(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
