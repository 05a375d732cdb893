"""Rows of a published weight in the packed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import RawBits, TensorRef
from q2export.exporter.checkpoint.pack import Float16Array, PackedRows, pack
from q2export.exporter.checkpoint.packed import SCALE_DTYPE
from q2export.exporter.checkpoint.values import check_block, convert_block
from q2export.exporter.quantization.published.groups import InputGroups, Int32Array
from q2export.exporter.quantization.published.match import PublishedWeight
from q2export.exporter.quantization.published.packing import Packing, UInt8Array
from q2export.exporter.quantization.published.source import PublishedSource
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.exporter.quantization.published.zero_points import read_zero_points
from q2export.strict.json import shown

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class WeightRows:
    """One weight, of which scales and zero points are in memory.

    Attributes:
        weight: its tensors.
        bits: of a code.
        packing: of the codes.
        groups: of its inputs.
        scales: float16 ``[groups, out]``.
        zero_points: ``[groups, out]``; None where they are not stored.
        row_order: which output stored row ``i`` belongs to; None where they are in order.
        codes: all of them as stored, in the order on disk, where rows are out of order; None otherwise.
    """

    weight: PublishedWeight
    bits: int
    packing: Packing
    groups: InputGroups
    scales: Float16Array = field(repr=False)
    zero_points: UInt8Array | None = field(repr=False)
    row_order: Int32Array | None = field(repr=False)
    codes: UInt8Array | None = field(repr=False, default=None)

    @classmethod
    def open(
        cls, source: PublishedSource, files: TensorFiles, weight: PublishedWeight, tile_bytes: int
    ) -> WeightRows:
        """Read what all rows need.

        Raises:
            CheckpointError: a scale is not finite or no number of float16, or the file changed since its
                header was read.
        """
        scheme = source.quantization.scheme
        scales = _float16(files.read(weight.scales), weight.scales)
        zero_points = None
        if not scheme.symmetric:
            zero_points = read_zero_points(files, weight, source.packing, scheme.bits)
        row_order = source.row_orders.get(weight.name)
        groups = source.groups[weight.name]
        rows = cls(weight, scheme.bits, source.packing, groups, scales, zero_points, row_order)
        if row_order is None:
            return rows
        codes = np.empty((weight.shape[0], rows.row_bytes), np.uint8)
        for first, count in rows.tiles(tile_bytes):
            codes[first : first + count] = rows.codes_of(files, first, count)
        return replace(rows, codes=codes)

    def tiles(self, tile_bytes: int) -> Iterator[tuple[int, int]]:
        """First row and number of rows of tiles of about ``tile_bytes`` of codes."""
        step = max(tile_bytes // self.row_bytes // self.packing.outputs_per_word, 1)
        step *= self.packing.outputs_per_word
        for first in range(0, self.weight.shape[0], step):
            yield first, min(step, self.weight.shape[0] - first)

    @property
    def row_bytes(self) -> int:
        """Bytes of the codes of a row."""
        return self.weight.shape[1] * self.bits // 8

    @property
    def parameter_bytes(self) -> int:
        """Bytes of scales and zero points on disk."""
        return self.weight.scales.nbytes + self.weight.qzeros.nbytes

    def read(self, files: TensorFiles, first: int, count: int) -> PackedRows:
        """Packed rows ``first`` to ``first + count - 1``; both fill whole words of ``qweight``."""
        outputs: slice | Int32Array = slice(first, first + count)
        if self.codes is not None and self.row_order is not None:
            outputs = self.row_order[outputs]
            codes = self.codes[outputs]
        else:
            codes = self.codes_of(files, first, count)
        zero_points = None
        if self.zero_points is not None:
            zero_points = pack(self._of_blocks(self.zero_points[:, outputs]), self.bits)
        return PackedRows(codes, self._of_blocks(self.scales[:, outputs]), zero_points)

    def codes_of(self, files: TensorFiles, first: int, count: int) -> UInt8Array:
        """Codes as stored, of the outputs ``first`` to ``first + count - 1``."""
        per_word = self.packing.outputs_per_word
        words = files.columns(self.weight.qweight, first // per_word, count // per_word)
        return self.packing.codes(words.view("<u4"), self.groups.order)

    def _of_blocks(self, of_groups: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """``[groups, rows]`` -> ``[rows, blocks]``."""
        return np.ascontiguousarray(of_groups[self.groups.of_blocks].T)


def _float16(bits: RawBits, ref: TensorRef) -> Float16Array:
    """Scales as they are stored: the same numbers, or none."""
    flat, stored = bits.reshape(-1), SCALE_DTYPE.safetensors
    check_block(flat, ref.dtype, ref.dtype, ref, 0)
    if ref.dtype == stored:
        return bits.view("<f2")
    halves = convert_block(flat, ref.dtype, stored)
    wide, exact = (convert_block(*each, "F32").view("<f4") for each in ((halves, stored), (flat, ref.dtype)))
    if (wrong := wide != exact).any():
        first = int(np.argmax(wrong))
        index = [int(i) for i in np.unravel_index(first, ref.shape)]
        raise CheckpointError(
            f"{ref.file}: tensor {shown(ref.name)}{index}: {float(exact[first])!r} is no number of float16, "
            "in which scales are stored; use a version with scales of float16, or quantize the original model"
        )
    return halves.view("<f2").reshape(bits.shape)
