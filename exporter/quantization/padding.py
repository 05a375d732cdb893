"""Intermediate sizes that the block size does not divide, made to fit with zeros.

A neuron whose rows of gate and up are zero puts out silu(0) * 0 = 0, and what its column of down multiplies
is nothing: adding such neurons leaves the function as it is, exactly. The quantized checkpoint then simply is
one of a model with a larger intermediate size. (Published sizes are multiples of 128.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from q2export.contracts.quantization import PackedQuantization
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.checkpoint.selection import is_kept


@dataclass(frozen=True)
class PaddedModel:
    """A model whose intermediate sizes fit the blocks.

    Attributes:
        config: its configuration.
        sizes: the fields of ``config.json`` that changed, with the size before and after.
    """

    config: ModelConfig
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def pad_intermediate(config: ModelConfig, packed: PackedQuantization) -> PaddedModel:
    """Round the intermediate sizes of quantized MLPs up to multiples of the block size.

    A size stays where every ``down_proj`` that has it is kept in high precision.
    """
    block, sizes = packed.block_size, {}
    for name, shape in expected_parameters(config).items():
        if name.endswith(".down_proj.weight") and not is_kept(name, packed.keep) and shape[1] % block:
            sizes[_field_of(name)] = (shape[1], -(-shape[1] // block) * block)
    if not sizes:
        return PaddedModel(config)
    padded = config.with_sizes({name: after for name, (_, after) in sizes.items()})
    return PaddedModel(padded, MappingProxyType(sizes))


def _field_of(down_proj: str) -> str:
    """The field of ``config.json`` that says the intermediate size of an MLP."""
    if ".mlp.experts." in down_proj:
        return "moe_intermediate_size"
    return "shared_expert_intermediate_size" if ".shared_expert." in down_proj else "intermediate_size"
