"""Values of one block of a tensor: conversion between float32, float16 and bfloat16, and the check before it.

Blocks hold raw bits (:func:`q2export.exporter.checkpoint.folder.read_blocks`), because numpy has no bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import RawBits, TensorRef
from q2export.strict.json import shown

# Bits of infinity without the sign; everything from there on is infinite or NaN.
_INFINITY: Mapping[str, int] = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}

# Bits of the smallest magnitude that rounds to infinity in the target: halfway past its largest number, whose
# last place is odd. 65520 for float16, (2 - 2**-8) * 2**127 for bfloat16.
_OVERFLOW: Mapping[tuple[str, str], int] = {
    ("F32", "F16"): 0x477FF000,
    ("BF16", "F16"): 0x4780,
    ("F32", "BF16"): 0x7F7F8000,
}
_LARGEST: Mapping[str, str] = {"F16": "65504", "BF16": "3.39e38"}


def check_block(raw: RawBits, source: str, target: str, ref: TensorRef, start: int) -> None:
    """Check that every value is finite and stays so in ``target``.

    Args:
        raw: bits of the block, flat.
        source: dtype of the bits, F32, F16 or BF16.
        target: dtype they will be converted to.
        ref: the tensor, for the message.
        start: index of the block's first element in the flattened tensor.

    Raises:
        CheckpointError: naming file, tensor, index and value of the first that is not.
    """
    limit = _OVERFLOW.get((source, target), _INFINITY[source])
    if not _reaches(raw, limit):
        return
    first = int(np.argmax(_magnitudes(raw) >= limit))
    index = [int(i) for i in np.unravel_index(start + first, ref.shape)]
    value = float(convert_block(raw[first : first + 1], source, "F32").view(np.float32)[0])
    if np.isfinite(value):
        problem = f"{value!r} is beyond {target} (largest {_LARGEST[target]}); build for a wider dtype"
    else:
        problem = f"{value!r}, expected a finite number; the checkpoint is damaged or its training diverged"
    raise CheckpointError(f"{ref.file}: tensor {shown(ref.name)}{index}: {problem}")


def count_nonzero(raw: RawBits) -> int:
    """How many values are not zero, of either sign."""
    return int(np.count_nonzero(raw << raw.dtype.type(1)))


def _reaches(raw: RawBits, limit: int) -> bool:
    """Whether any magnitude is ``limit`` or more, in bits.

    Magnitudes order as their bits do: the largest of the negative values is the unsigned maximum, that of the
    others the signed one. Two passes and no temporary.
    """
    if raw.size == 0:
        return False
    sign = 1 << (8 * raw.itemsize - 1)
    return int(raw.max()) >= sign + limit or int(raw.view(f"<i{raw.itemsize}").max()) >= limit


def _magnitudes(raw: RawBits) -> RawBits:
    magnitudes: RawBits = raw & raw.dtype.type((1 << (8 * raw.itemsize - 1)) - 1)
    return magnitudes


def convert_block(raw: RawBits, source: str, target: str) -> RawBits:
    """Convert bits of ``source`` to bits of ``target`` (F32, F16 or BF16), rounding to nearest, ties to even.

    Infinities and NaN stay what they are; a magnitude beyond the target's becomes infinite (see
    :func:`check_block`). Returns ``raw`` itself where nothing changes.
    """
    if source == target:
        return raw
    if target == "F32":
        return _widen(raw, source)
    wide = raw if source == "F32" else _widen(raw, source)
    return _to_half(wide) if target == "F16" else _to_bfloat16(wide)


def _widen(raw: RawBits, source: str) -> RawBits:
    if source == "F16":
        return raw.view("<f2").astype("<f4").view("<u4")
    wide = np.empty(raw.size, "<u4")
    halves = wide.view("<u2")
    halves[0::2] = 0
    halves[1::2] = raw
    return wide


def _to_half(wide: RawBits) -> RawBits:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return wide.view("<f4").astype("<f2").view("<u2")


def _to_bfloat16(wide: RawBits) -> RawBits:
    rounded = wide >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += wide
    rounded >>= 16
    narrow = rounded.astype("<u2")
    if _reaches(wide, _INFINITY["F32"] + 1):  # rounding may have carried a NaN into infinity or zero
        is_nan = _magnitudes(wide) > _INFINITY["F32"]
        narrow[is_nan] = (wide[is_nan] >> 16) | 0x40
    return narrow
