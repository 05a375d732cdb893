"""A published quantized checkpoint, checked: all that is known before the first code is read.

Read are the headers, and of the tensors those that decide how the model can be stored: zero points, group
indices, and biases that should not be there. They are about a hundredth of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from q2export.contracts.quantization import BLOCK_SIZES, PackedQuantization
from q2export.errors import CheckpointError, ConfigError
from q2export.exporter.checkpoint.config import ModelConfig, load_config
from q2export.exporter.checkpoint.folder import Checkpoint, open_checkpoint
from q2export.exporter.checkpoint.parameters import LM_HEAD, expected_parameters
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.checkpoint.safetensors_header import QUANTIZED_DTYPES
from q2export.exporter.checkpoint.selection import is_quantizable, ordered_input
from q2export.exporter.quantization.published.groups import InputGroups, input_groups
from q2export.exporter.quantization.published.match import MatchedTensors, PublishedWeight, match_tensors
from q2export.exporter.quantization.published.packing import Packing, packing_of
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.exporter.quantization.published.zero_points import are_default
from q2export.strict.json import shown

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PublishedSource:
    """A published checkpoint and how it will be stored.

    Attributes:
        config: of the model.
        checkpoint: the folder.
        tensors: which tensors hold which parameter.
        packing: of codes and zero points.
        quantization: of the repacked checkpoint.
        groups: of the inputs of every quantized weight.
        row_orders: permutations of the rows of gate and up, in place of one of the columns of down.
    """

    config: ModelConfig
    checkpoint: Checkpoint
    tensors: MatchedTensors
    packing: Packing
    quantization: PackedQuantization
    groups: Mapping[str, InputGroups]
    row_orders: Mapping[str, Int32Array]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the checkpoint."""
        return sum(ref.nbytes for ref in self.checkpoint.tensors.values())


def load_published(folder: Path) -> PublishedSource:
    """Read and check a published quantized checkpoint.

    Raises:
        ConfigError: ``config.json`` is not that of a GPTQ or AWQ model, or asks for what is not supported.
        CheckpointError: tensors are missing, left over, of the wrong type or shape, or hold what the stored
            form cannot: naming file and tensor.
    """
    config = load_config(folder)
    quantization = config.quantization
    if not isinstance(quantization, PublishedQuantization):
        raise ConfigError(
            f"{folder / 'config.json'}: quantization_config: expected that of a GPTQ or AWQ checkpoint, "
            f"found {'the packed form of q2export' if quantization else 'none'}"
        )
    checkpoint = open_checkpoint(folder, QUANTIZED_DTYPES)
    tensors = match_tensors(checkpoint, config, quantization)
    block_size = _block_size(tensors, quantization)
    packing = packing_of(quantization)
    with TensorFiles(checkpoint.files) as files:
        _check_zeros(files, tensors, config)
        groups = {
            name: input_groups(files, weight, quantization, block_size)
            for name, weight in tensors.quantized.items()
        }
        weights = tensors.quantized.values()
        defaults = [are_default(files, weight, packing, quantization) for weight in weights]
    _check_shared_inputs(tensors.quantized, groups)
    row_orders = dict(_row_orders(tensors.quantized, groups))
    embedding = LM_HEAD in tensors.quantized
    packed = PackedQuantization(
        bits=quantization.bits,
        block_size=block_size,
        symmetric=all(defaults),
        method=quantization.method,
        embedding=embedding,
        keep=tuple(
            name
            for name in expected_parameters(config)
            if is_quantizable(name, embedding) and name not in tensors.quantized
        ),
        input_order=any(
            group.order is not None for name, group in groups.items() if ordered_input(name) is not None
        ),
    )
    return PublishedSource(config, checkpoint, tensors, packing, packed, groups, row_orders)


def _block_size(tensors: MatchedTensors, quantization: PublishedQuantization) -> int:
    """The largest block of which groups and rows are made; its scale is then repeated."""
    lengths = {weight.shape[1]: weight for weight in tensors.quantized.values()}
    if quantization.group_size is not None:
        sizes = [size for size in BLOCK_SIZES if quantization.group_size % size == 0]
    else:
        sizes = list(BLOCK_SIZES)
    for size in sorted(sizes, reverse=True):
        if all(length % size == 0 for length in lengths):
            return size
    smallest = min(sizes)
    length, weight = next(item for item in lengths.items() if item[0] % smallest)
    raise CheckpointError(
        f"{weight.qweight.file}: {weight.name!r} has rows of {length} values, expected a multiple of "
        f"{smallest}: the packed form has no shorter block at the end of a row; use the unquantized model"
    )


def _check_zeros(files: TensorFiles, tensors: MatchedTensors, config: ModelConfig) -> None:
    """Biases the model does not have must be zero, of either sign."""
    for ref in tensors.zeros:
        bits = files.read(ref)
        magnitudes = bits << bits.dtype.type(1)
        if magnitudes.any():
            raise CheckpointError(
                f"{ref.file}: tensor {shown(ref.name)}: expected zeros, for {config.model_type} has no such "
                f"bias, found another value at [{int(np.argmax(magnitudes != 0))}]; it is another model"
            )


def _check_shared_inputs(weights: Mapping[str, PublishedWeight], groups: Mapping[str, InputGroups]) -> None:
    """Weights that read the same must want it in the same order: it is gathered once for all."""
    first: dict[tuple[str, ...], str] = {}
    for name, weight in weights.items():
        read = ordered_input(name)
        if read is None:
            continue
        holder = first.setdefault(read, name)
        if not groups[holder].same_order(groups[name]):
            ref = weight.g_idx or weight.qweight
            raise CheckpointError(
                f"{ref.file}: tensor {shown(ref.name)}: orders its inputs otherwise than {shown(holder)} "
                "orders the same ones; act-order with different orders is not implemented: use a version "
                "quantized with desc_act false"
            )


def _row_orders(
    weights: Mapping[str, PublishedWeight], groups: Mapping[str, InputGroups]
) -> Iterator[tuple[str, Int32Array]]:
    """The order of down's columns, as one of the rows of gate and up, from which its input is made."""
    for name, weight in weights.items():
        order = groups[name].order
        if order is None or not name.endswith(".down_proj.weight"):
            continue
        for sibling in ("gate_proj", "up_proj"):
            source = name.replace("down_proj", sibling)
            if source not in weights:
                raise CheckpointError(
                    f"{weight.qweight.file}: {name!r} has its inputs in another order (g_idx), but "
                    f"{source!r} is not quantized; such a mixture is not implemented: use a version "
                    "quantized with desc_act false"
                )
            yield source, order
