"""Which inputs of a weight share a scale, and the order that makes every block lie within one group."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import TensorRef
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.quantization.published.match import PublishedWeight
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.strict.json import shown

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class InputGroups:
    """The groups of one weight's inputs.

    Attributes:
        of_blocks: the group of every stored block, ``[in / block_size]``.
        order: which input stored column ``j`` belongs to, ``[in]``; None where they are in order.
    """

    of_blocks: Int32Array = field(repr=False)
    order: Int32Array | None = field(default=None, repr=False)

    def same_order(self, other: InputGroups) -> bool:
        """Whether both want their inputs in the same order."""
        if self.order is None or other.order is None:
            return self.order is other.order
        return np.array_equal(self.order, other.order)


def input_groups(
    files: TensorFiles, weight: PublishedWeight, quantization: PublishedQuantization, block_size: int
) -> InputGroups:
    """Read and check the groups of a weight.

    Groups follow each other, ``group_size`` inputs each, unless ``g_idx`` says otherwise (act-order). Then
    the inputs are sorted by group, keeping their order within it.

    Raises:
        CheckpointError: ``g_idx`` is out of range, contradicts ``desc_act``, or has a group that is not a
            whole number of blocks.
    """
    inputs = weight.shape[1]
    consecutive = np.arange(inputs, dtype=np.int32) // np.int32(quantization.group_size or inputs)
    if weight.g_idx is None:
        return InputGroups(consecutive[::block_size])
    g_idx = files.read(weight.g_idx).view("<i4")
    if np.array_equal(g_idx, consecutive):
        return InputGroups(consecutive[::block_size])
    _check_values(g_idx, weight.g_idx, weight.groups, quantization)
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    blocks = g_idx[order].reshape(-1, block_size)
    uneven = (blocks != blocks[:, :1]).any(axis=1)
    if uneven.any():
        group = int(blocks[np.argmax(uneven), 0])
        count = int((g_idx == group).sum())
        raise CheckpointError(
            f"{weight.g_idx.file}: tensor {shown(weight.g_idx.name)}: group {group} has {count} inputs, "
            f"expected {quantization.group_size}; groups of different sizes are not implemented: use a "
            "version quantized with desc_act false"
        )
    in_order = np.array_equal(order, np.arange(inputs, dtype=np.int32))
    return InputGroups(np.ascontiguousarray(blocks[:, 0]), None if in_order else order)


def _check_values(
    g_idx: Int32Array, ref: TensorRef, groups: int, quantization: PublishedQuantization
) -> None:
    outside = (g_idx < 0) | (g_idx >= groups)
    if outside.any():
        index = int(np.argmax(outside))
        raise CheckpointError(
            f"{ref.file}: tensor {shown(ref.name)}[{index}]: expected a group of 0 to {groups - 1}, found "
            f"{int(g_idx[index])}; the file is damaged: get it again"
        )
    if quantization.act_order is False:
        raise CheckpointError(
            f"{ref.file}: tensor {shown(ref.name)}: the groups are not in order, yet desc_act is false in "
            "quantization_config, and readers differ in which they believe; correct desc_act"
        )
