"""Where every tensor of a quantized checkpoint lies in its one safetensors file; known before a byte is read.

Weights that a kernel may want as one matrix are one group: q, k and v, gate and up, the gates and ups of all
experts, the downs of all experts. Of a group come first all codes, then all scales, then all zero points,
each without a gap, so that the fused matrix is mapped in place: q, k and v as ``[q + k + v, in]``, the
experts of a layer as ``[experts, 2 * intermediate, in]``. Each such run starts on a cache line. The format
allows no holes, so where sizes leave one (in no published model), a tensor ``__padding__.N`` of zeros fills
it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType

from q2export.contracts.dtypes import BY_SAFETENSORS
from q2export.contracts.quantization import PackedQuantization
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.packed import SCALE_DTYPE, PackedWeight
from q2export.exporter.checkpoint.parameters import EMBEDDING, expected_parameters
from q2export.exporter.checkpoint.selection import select_weights

ALIGNMENT = 64
"""Bytes; runs of tensors start at multiples of it."""

PADDING_PREFIX = "__padding__."
"""Tensors of this name hold nothing; readers skip them."""


@dataclass(frozen=True)
class PlacedTensor:
    """One tensor of the file.

    Attributes:
        name, dtype, shape: as in the header; dtype is U8, F16, F32, BF16 or I32.
        offset: bytes from the start of the file.
        nbytes: its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The whole file.

    Attributes:
        header: its first bytes.
        tensors: by name, in the order of the file.
        groups: the quantized weights, those that a kernel may want as one matrix together, in model order.
            Weights of one tensor follow each other.
        plain: names of the tensors that are copied as they are, in the order of the file.
        file_bytes: size of the file.
    """

    header: bytes = field(repr=False)
    tensors: Mapping[str, PlacedTensor] = field(repr=False)
    groups: tuple[tuple[PackedWeight, ...], ...] = field(repr=False)
    plain: tuple[str, ...] = field(repr=False)
    file_bytes: int = 0


def plan_layout(config: ModelConfig, packed: PackedQuantization, dtypes: Mapping[str, str]) -> Layout:
    """Plan the file of a model.

    Args:
        config: of the model.
        packed: what is quantized, and how.
        dtypes: F32, F16 or BF16 of every parameter; what is not quantized keeps it.

    Raises:
        ProfileError: the quantization does not fit the model.
    """
    weights = select_weights(config, packed)
    shapes = expected_parameters(config)
    file = _File()
    groups: list[tuple[PackedWeight, ...]] = []
    plain: list[str] = []
    for names in parameter_groups(config):
        quantized = tuple(weights[name] for name in names if name in weights)
        if quantized:
            groups.append(quantized)
            file.add_weights(quantized)
        kept = [name for name in names if name not in weights]
        for dtype, same in groupby(kept, key=lambda name: dtypes[name]):
            run = [(name, dtype, shapes[name]) for name in same]
            plain += [name for name, _, _ in run]
            file.add_run(run)
    return file.layout(tuple(groups), tuple(plain))


def parameter_groups(config: ModelConfig) -> Iterator[tuple[str, ...]]:
    """Names of all parameters in the order of the file, those that belong together in one tuple."""
    parameters = list(expected_parameters(config))
    yield (EMBEDDING,)
    for layer in range(config.num_hidden_layers):
        yield from _layer_groups(config, layer)
    yield from ((name,) for name in parameters if not name.startswith("model.layers.") and name != EMBEDDING)


def _layer_groups(config: ModelConfig, layer: int) -> Iterator[tuple[str, ...]]:
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    yield tuple(f"{attention}.{name}_proj.weight" for name in "qkv")
    if config.qkv_bias:
        yield tuple(f"{attention}.{name}_proj.bias" for name in "qkv")
    yield (f"{attention}.o_proj.weight",)
    if config.moe is not None and config.is_moe_layer(layer):
        yield (f"{mlp}.gate.weight",)
        yield (f"{mlp}.shared_expert_gate.weight",)
        yield from _mlp_groups([f"{mlp}.shared_expert"])
        yield from _mlp_groups([f"{mlp}.experts.{expert}" for expert in range(config.moe.num_experts)])
    else:
        yield from _mlp_groups([mlp])
    yield (f"{prefix}.input_layernorm.weight",)
    yield (f"{prefix}.post_attention_layernorm.weight",)


def _mlp_groups(modules: Sequence[str]) -> Iterator[tuple[str, ...]]:
    yield tuple(f"{module}.{name}_proj.weight" for module in modules for name in ("gate", "up"))
    yield tuple(f"{module}.down_proj.weight" for module in modules)


class _File:
    """Tensors put one after the other."""

    def __init__(self) -> None:
        self._position = 0  # behind the header
        self._padding = 0
        self._tensors: list[PlacedTensor] = []

    def add_weights(self, weights: Sequence[PackedWeight]) -> None:
        """Codes of all, scales of all, zero points of all; then orders of the input."""
        held = list({weight.tensor: weight for weight in weights}.values())  # one per tensor
        self.add_run([(weight.tensor, "U8", weight.codes_shape) for weight in held])
        scales = [(weight.scale_name, SCALE_DTYPE.safetensors, weight.scale_shape) for weight in held]
        self.add_run(scales)
        zero_points = [(weight.zero_point_name, "U8", weight.zero_point_shape) for weight in held]
        self.add_run([(name, dtype, shape) for name, dtype, shape in zero_points if name is not None])
        orders = [(weight.input_order, weight.shape[1:]) for weight in weights if weight.holds_input_order]
        self.add_run([(name, "I32", shape) for name, shape in orders if name is not None])

    def add_run(self, run: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        """Tensors without a gap, the first on a cache line."""
        gap = -self._position % ALIGNMENT
        if run and gap:
            self._append(f"{PADDING_PREFIX}{self._padding}", "U8", (gap,))
            self._padding += 1
        for name, dtype, shape in run:
            self._append(name, dtype, shape)

    def _append(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        nbytes = math.prod(shape) * BY_SAFETENSORS[dtype].itemsize
        self._tensors.append(PlacedTensor(name, dtype, shape, self._position, nbytes))
        self._position += nbytes

    def layout(self, groups: tuple[tuple[PackedWeight, ...], ...], plain: tuple[str, ...]) -> Layout:
        """The finished file; offsets now count from its start."""
        header = _header(self._tensors)
        start = len(header)
        placed = {
            one.name: PlacedTensor(one.name, one.dtype, one.shape, start + one.offset, one.nbytes)
            for one in self._tensors
        }
        return Layout(header, MappingProxyType(placed), groups, plain, start + self._position)


def _header(tensors: Sequence[PlacedTensor]) -> bytes:
    """Length and JSON, padded with spaces as the format allows, so that the data start on a cache line."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for one in tensors:
        offsets = [one.offset, one.offset + one.nbytes]
        entries[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
