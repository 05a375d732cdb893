"""Codes as bytes: one per byte for 8 bits, two per byte for 4, the first in the low nibble.

That is the order of ONNX INT4 and UINT4 tensors and of ``com.microsoft.MatMulNBits``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]


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
