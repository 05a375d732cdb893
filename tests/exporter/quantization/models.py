"""Small models that can be cut into blocks of 32, and reading what was written of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.exporter.checkpoint.pack import unpack
from q2export.exporter.checkpoint.packed import PackedWeight
from tests.helpers.checkpoints import tiny_config

MOE = {"model_type": "qwen2_moe", "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}


def blocks_config(**overrides: object) -> dict[str, object]:
    """``config.json`` of a model whose ``in`` sizes are multiples of 32."""
    sizes: dict[str, object] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    return tiny_config(**(sizes | overrides))


def model_config(**overrides: object) -> ModelConfig:
    """The same, parsed."""
    return parse_config(blocks_config(**overrides), "test config")


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a file as the safetensors library sees them; bfloat16 as its bits."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return {
        name: (tensor.view(dtype=_BITS[str(tensor.dtype)]) if str(tensor.dtype) in _BITS else tensor).numpy()
        for name, tensor in tensors.items()
    }


def _bits() -> dict[str, Any]:
    import torch

    return {"torch.bfloat16": torch.uint16}


_BITS = _bits()


def dequantize(tensors: dict[str, npt.NDArray[Any]], weight: PackedWeight) -> npt.NDArray[np.float32]:
    """The values of a weight, block by block, from what the docstring of ``packed.py`` says."""
    scheme = weight.scheme
    rows = slice(weight.first_row, None, weight.row_step)
    codes = unpack(tensors[weight.tensor][rows], scheme.bits, weight.shape[1]).astype(np.float32)
    scales = tensors[weight.scale_name][rows].astype(np.float32)
    if weight.zero_point_name is None:
        zero_points = np.full(scales.shape, scheme.default_zero_point, np.float32)
    else:
        packed = tensors[weight.zero_point_name][rows]
        zero_points = unpack(packed, scheme.bits, weight.blocks).astype(np.float32)
    values = np.empty(weight.shape, np.float32)
    for block in range(weight.blocks):
        columns = slice(block * scheme.block_size, (block + 1) * scheme.block_size)
        values[:, columns] = (codes[:, columns] - zero_points[:, block, None]) * scales[:, block, None]
    return values
