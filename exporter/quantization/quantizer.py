"""What a method of quantization is to the rest: rows of a matrix in, codes, scales and zero points out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from q2export.exporter.quantization.pack import UInt8Array, pack
from q2export.exporter.quantization.stored import StoredWeight
from q2export.quantization import Method, Scheme

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a quantized weight as they are stored.

    Attributes:
        codes: uint8 ``[rows, in * bits / 8]``.
        scales: ``[rows, in / block_size]``.
        zero_points: uint8 ``[rows, ceil(in / block_size * bits / 8)]``; None where the scheme is symmetric.
    """

    codes: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array | None = None


@dataclass(frozen=True)
class QuantizedRows:
    """Some rows of a quantized weight.

    Attributes:
        codes: ``[rows, in]``, one code per byte.
        scales: ``[rows, in / block_size]``, finite and not zero.
        zero_points: as ``scales``; None where the scheme is symmetric.
    """

    codes: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array | None = None

    def packed(self, bits: int) -> PackedRows:
        """As they are stored."""
        zero_points = None if self.zero_points is None else pack(self.zero_points, bits)
        return PackedRows(pack(self.codes, bits), self.scales, zero_points)

    def dequantized(self, scheme: Scheme) -> Float32Array:
        """``(code - zero_point) * scale`` in float32, ``[rows, in]``."""
        count, size = self.codes.shape
        blocks = self.codes.reshape(count, size // scheme.block_size, scheme.block_size).astype(np.float32)
        blocks -= scheme.default_zero_point if self.zero_points is None else self.zero_points[..., None]
        blocks *= self.scales[..., None]
        return blocks.reshape(count, size)


class Quantizer(Protocol):
    """A method of quantization.

    Attributes:
        in_order: one group of the layout is done before the next is begun, in model order; otherwise they may
            overlap.
        chunk_values: about how many values of a weight to ask for at a time.
    """

    in_order: bool
    chunk_values: int

    def quantize(self, weight: StoredWeight, first_row: int, rows: Float32Array) -> QuantizedRows:
        """Quantize some rows, float32 ``[rows, in]``, finite; called from several threads.

        The result for a row must not depend on which rows come along.
        """

    def method(self, weight: StoredWeight) -> Method:
        """How a weight was quantized; asked when all of its rows are done."""
