"""Rows of quantized weights, and their codes as bytes.

One code per byte for 8 bits, two for 4, the first in the low nibble: that is the order of ONNX INT4 and UINT4
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from q2export.contracts.quantization import Scheme

UInt8Array = npt.NDArray[np.uint8]
Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]


def pack(codes: UInt8Array, bits: int) -> UInt8Array:
    """Pack the last axis.

    Args:
        codes: ``[..., n]``, each below ``2 ** bits``.
        bits: 4 or 8.

    Returns:
        ``[..., ceil(n * bits / 8)]``; an odd last nibble is followed by a zero one. ``codes`` itself for 8
        bits.
    """
    if bits == 8:
        return codes
    count = codes.shape[-1]
    packed = np.empty((*codes.shape[:-1], (count + 1) // 2), np.uint8)
    whole = count // 2
    np.left_shift(codes[..., 1::2], 4, out=packed[..., :whole])
    packed[..., :whole] |= codes[..., 0 : 2 * whole : 2]
    if count % 2:
        packed[..., whole] = codes[..., -1]
    return packed


def unpack(packed: UInt8Array, bits: int, count: int) -> UInt8Array:
    """The ``count`` codes of the last axis that :func:`pack` packed; ``packed`` itself for 8 bits."""
    if bits == 8:
        return packed[..., :count]
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 0x0F, out=codes[..., 0::2])
    np.right_shift(packed, 4, out=codes[..., 1::2])
    return codes[..., :count]


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a quantized weight as they are stored.

    Attributes:
        codes: uint8 ``[rows, in * bits / 8]``.
        scales: float16 ``[rows, in / block_size]``.
        zero_points: uint8 ``[rows, ceil(in / block_size * bits / 8)]``; None where the scheme is symmetric.
    """

    codes: UInt8Array
    scales: Float16Array
    zero_points: UInt8Array | None = None


@dataclass(frozen=True)
class QuantizedRows:
    """Some rows of a quantized weight.

    Attributes:
        codes: ``[rows, in]``, one code per byte.
        scales: ``[rows, in / block_size]``, numbers that float16 holds exactly.
        zero_points: as ``scales``; None where the scheme is symmetric.
    """

    codes: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array | None = None

    def packed(self, bits: int) -> PackedRows:
        """As they are stored."""
        zero_points = None if self.zero_points is None else pack(self.zero_points, bits)
        return PackedRows(pack(self.codes, bits), self.scales.astype(np.float16), zero_points)

    def dequantized(self, scheme: Scheme) -> Float32Array:
        """``(code - zero_point) * scale`` in float32, ``[rows, in]``."""
        count, size = self.codes.shape
        blocks = self.codes.reshape(count, size // scheme.block_size, scheme.block_size).astype(np.float32)
        blocks -= scheme.default_zero_point if self.zero_points is None else self.zero_points[..., None]
        blocks *= self.scales[..., None]
        return blocks.reshape(count, size)
