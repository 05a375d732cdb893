"""Rows of a published weight in the stored form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from q2export.exporter.checkpoint import RawBits
from q2export.exporter.quantization.pack import pack, unpack
from q2export.exporter.quantization.published.groups import InputGroups, Int32Array
from q2export.exporter.quantization.published.match import PackedWeight
from q2export.exporter.quantization.published.packing import Packing, UInt8Array, Words
from q2export.exporter.quantization.published.source import PublishedSource
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.exporter.quantization.published.zero_points import read_zero_points
from q2export.exporter.quantization.quantizer import PackedRows
from q2export.exporter.values import check_block, convert_block

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class WeightRows:
    """One weight, of which scales and zero points are in memory.

    Attributes:
        weight: its tensors.
        bits: of a code.
        packing: of the codes.
        groups: of its inputs.
        scales: bits of the scales, ``[groups, out]``.
        zero_points: ``[groups, out]``; None where they are not stored.
        row_order: which output stored row ``i`` belongs to; None where they are in order.
        qweight: the whole tensor where rows are out of order, so that it is read once; None otherwise.
    """

    weight: PackedWeight
    bits: int
    packing: Packing
    groups: InputGroups
    scales: RawBits = field(repr=False)
    zero_points: UInt8Array | None = field(repr=False)
    row_order: Int32Array | None = field(repr=False)
    qweight: Words | None = field(repr=False)

    @classmethod
    def open(cls, source: PublishedSource, files: TensorFiles, weight: PackedWeight) -> WeightRows:
        """Read what all rows need.

        Raises:
            CheckpointError: a scale is not finite, or the file changed since its header was read.
        """
        scheme = source.stored.scheme
        scales = files.read(weight.scales)
        check_block(scales.reshape(-1), weight.scales.dtype, "F32", weight.scales, 0)
        zero_points = None
        if not scheme.symmetric:
            zero_points = read_zero_points(files, weight, source.packing, scheme.bits)
        row_order = source.row_orders.get(weight.name)
        qweight = None if row_order is None else files.read(weight.qweight).view("<u4")
        groups = source.groups[weight.name]
        return cls(weight, scheme.bits, source.packing, groups, scales, zero_points, row_order, qweight)

    @property
    def row_bytes(self) -> int:
        """Bytes of the codes of a row."""
        return self.weight.shape[1] * self.bits // 8

    @property
    def parameter_bytes(self) -> int:
        """Bytes of scales and zero points on disk."""
        return self.weight.scales.nbytes + self.weight.qzeros.nbytes

    def read(self, files: TensorFiles, first: int, count: int) -> PackedRows:
        """Stored rows ``first`` to ``first + count - 1``; both fill whole words of ``qweight``."""
        outputs: slice | Int32Array = slice(first, first + count)
        if self.row_order is not None:
            outputs = self.row_order[outputs]
        codes = self.packing.codes(np.ascontiguousarray(self._words(files, first, count)))
        if self.groups.order is not None:
            codes = pack(unpack(codes, self.bits, self.weight.shape[1])[:, self.groups.order], self.bits)
        zero_points = None
        if self.zero_points is not None:
            zero_points = pack(self._of_blocks(self.zero_points[:, outputs]), self.bits)
        scales = convert_block(self.scales[:, outputs].reshape(-1), self.weight.scales.dtype, "F32")
        return PackedRows(codes, self._of_blocks(scales.view("<f4").reshape(-1, count)), zero_points)

    def _words(self, files: TensorFiles, first: int, count: int) -> Words:
        if self.qweight is not None and self.row_order is not None:
            return self.qweight[:, self.row_order[first : first + count]]
        per_word = self.packing.outputs_per_word
        words: Words = files.columns(self.weight.qweight, first // per_word, count // per_word).view("<u4")
        return words

    def _of_blocks(self, of_groups: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """``[groups, rows]`` -> ``[rows, blocks]``."""
        return np.ascontiguousarray(of_groups[self.groups.of_blocks].T)
