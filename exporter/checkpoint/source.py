"""A checkpoint on disk, checked as far as its headers allow: where every way through the exporter starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from q2export.contracts.dtypes import BY_SAFETENSORS
from q2export.contracts.quantization import PackedQuantization
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.config import ModelConfig, load_config
from q2export.exporter.checkpoint.folder import Checkpoint, TensorRef, open_checkpoint
from q2export.exporter.checkpoint.packed import SCALE_DTYPE, PackedWeight
from q2export.exporter.checkpoint.packed_layout import PADDING_PREFIX
from q2export.exporter.checkpoint.parameters import TensorSpec, check_parameters, expected_parameters
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES, QUANTIZED_DTYPES
from q2export.exporter.checkpoint.selection import select_weights


@dataclass(frozen=True)
class Source:
    """A checkpoint that passed every check that headers allow.

    Attributes:
        folder: of the checkpoint.
        config: its ``config.json``.
        checkpoint: its tensors.
        packed: the quantized weights, by Hugging Face name; empty for an unquantized checkpoint.
    """

    folder: Path
    config: ModelConfig
    checkpoint: Checkpoint
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)

    @property
    def quantization(self) -> PackedQuantization | None:
        """How the checkpoint is quantized; None if it is not."""
        found = self.config.quantization
        return found if isinstance(found, PackedQuantization) else None

    @cached_property
    def dtype(self) -> str:
        """Type of what is not quantized, ``float32``, ``float16`` or ``bfloat16``.

        Of an unquantized checkpoint it is the one most bytes of its matrices have.
        """
        if not self.packed:
            return BY_SAFETENSORS[self.checkpoint.dtype].name
        held = {name for weight in self.packed.values() for name, _ in _tensors_of(weight)}
        plain = [self.checkpoint.tensors[name] for name in self.tensor_names if name not in held]
        return plain_dtype(self.config, plain)

    @cached_property
    def float_dtypes(self) -> dict[str, str]:
        """Types of the tensors that hold floating-point values, by name."""
        tensors = {name: self.checkpoint.tensors[name].dtype for name in self.tensor_names}
        return {name: BY_SAFETENSORS[dtype].name for name, dtype in tensors.items() if dtype in FLOAT_DTYPES}

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors of the model; not the padding between them, nor the copy of a tied head."""
        return tuple(tensor_specs(self.config, self.packed))


def plain_dtype(config: ModelConfig, plain: Iterable[TensorRef]) -> str:
    """Type of a quantized checkpoint's unquantized tensors: what ``config.json`` says, or most bytes have."""
    if config.torch_dtype is not None:
        return config.torch_dtype
    nbytes: Counter[str] = Counter()
    for ref in plain:
        nbytes[ref.dtype] += ref.nbytes
    return BY_SAFETENSORS[max(nbytes, key=lambda dtype: nbytes[dtype])].name


def load_source(folder: Path) -> Source:
    """Read and check ``config.json`` and all tensor headers; no weight is read.

    Args:
        folder: of a checkpoint that is not quantized, or one in the packed form.

    Raises:
        ConfigError, CheckpointError: naming file and field or tensor.
    """
    config = load_config(folder)
    quantization = config.quantization
    if isinstance(quantization, PublishedQuantization):
        raise ConfigError(
            f"{folder / 'config.json'}: a published quantized checkpoint ({quantization.method}), which has "
            "to be repacked first: q2export repack --model ... --output ..."
        )
    if quantization is None:
        checkpoint = open_checkpoint(folder)
        check_parameters(checkpoint, config)
        return Source(folder, config, checkpoint)
    packed = select_weights(config, quantization)
    specs = tensor_specs(config, packed)
    checkpoint = open_checkpoint(folder, QUANTIZED_DTYPES)
    padding = {name: ref for name, ref in checkpoint.tensors.items() if name.startswith(PADDING_PREFIX)}
    check_parameters(
        checkpoint, config, specs | {name: TensorSpec(ref.shape, ("U8",)) for name, ref in padding.items()}
    )
    return Source(folder, config, checkpoint, MappingProxyType(packed))


def tensor_specs(config: ModelConfig, packed: Mapping[str, PackedWeight]) -> dict[str, TensorSpec]:
    """What has to be in a checkpoint some of whose weights are in the packed form, by name of the tensor."""
    specs: dict[str, TensorSpec] = {}
    for name, shape in expected_parameters(config).items():
        weight = packed.get(name)
        specs.update({name: TensorSpec(shape)} if weight is None else dict(_tensors_of(weight)))
    return specs


def _tensors_of(weight: PackedWeight) -> Iterator[tuple[str, TensorSpec]]:
    """The tensors that hold a quantized weight; some may hold another one, too."""
    yield weight.tensor, TensorSpec(weight.codes_shape, ("U8",))
    yield weight.scale_name, TensorSpec(weight.scale_shape, (SCALE_DTYPE.safetensors,))
    if weight.zero_point_name is not None:
        yield weight.zero_point_name, TensorSpec(weight.zero_point_shape, ("U8",))
    if weight.input_order is not None:
        yield weight.input_order, TensorSpec((weight.shape[1],), ("I32",))
