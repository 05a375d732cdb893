"""The scale and zero point of each block that give the least squared error.

Blocks are columns here, ``[block_size, blocks]``: every step is then one pass over long rows, and what comes
out for a block does not depend on the blocks beside it.

Blocks are first normalised so that a factor of 1 spans all codes. For each factor of a small grid, values are
rounded to codes ``q`` (relative to the zero point) and the scale that fits these codes best follows in closed
form: of ``sum((u - s * q) ** 2)`` the minimum over ``s`` is at ``s = sum(u * q) / sum(q * q)``, and it is the
lower, the larger ``sum(u * q) ** 2 / sum(q * q)``. The best factor wins. llama.cpp's ``make_qx_quants``
(``ggml-quants.c``) searches the same way.

Symmetric int4 scales carry a sign: the value of largest magnitude becomes -8, whatever its sign, so that all
16 codes are used; against scales that are positive only this takes 12 % off the squared error of normally
distributed weights in blocks of 32. Scales of int8 are positive, for TensorRT takes no others there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from q2export.contracts.quantization import Scheme
from q2export.exporter.checkpoint.pack import Float32Array, UInt8Array

_FACTORS = {4: (1.02, 0.96, 1.08, 0.9, 1.14, 1.2), 8: (1.0,)}
"""Grid per bits; of equals the first wins, with which a block of one value has that value times 1/8 for its
scale, exactly. Above 1 the largest values are clipped. For int4, 40 points over 0.8 to 1.6 lower the
squared error of normally distributed weights by another 0.4 %; for int8 the range is spanned as it is."""

_SMALLEST_SCALE = np.float32(2.0**-126)
"""The smallest normal number, so that its reciprocal is finite."""

_HALF_NORMAL, _HALF_STEP = np.float32(2.0**-14), np.float32(2.0**-24)
"""Of float16, the smallest normal number, and what those below it are multiples of."""


@dataclass(frozen=True)
class BlockParameters:
    """What codes of blocks mean: ``value = (code - zero_point) * scale``.

    Attributes:
        scales: ``[blocks]``, finite and not zero.
        zero_points: ``[blocks]``; None where the scheme is symmetric.
    """

    scales: Float32Array
    zero_points: UInt8Array | None


def search_parameters(blocks: Float32Array, scheme: Scheme) -> BlockParameters:
    """Choose scale and zero point of each block.

    Args:
        blocks: ``[block_size, blocks]``, finite, C-contiguous.
        scheme: bits and symmetry.

    Returns:
        scales that float16 holds exactly, and larger ones where its range does not suffice, which the packed
        form cannot hold. A block of zeros gets the scale 1.
    """
    if blocks.shape[1] == 1:
        # NumPy adds up a single column in another order than one among others.
        both = search_parameters(np.repeat(blocks, 2, axis=1), scheme)
        return BlockParameters(both.scales[:1], None if both.zero_points is None else both.zero_points[:1])
    unit, zero_points = _full_range(blocks, scheme)
    if zero_points is None:
        low = np.asarray(-scheme.default_zero_point, np.float32)
    else:
        low = -zero_points.astype(np.float32)
    high = low + np.float32(scheme.levels - 1)
    scales = _best_scales(blocks, unit, (low, high), _FACTORS[scheme.bits])
    return BlockParameters(_representable(scales), zero_points)


def _full_range(blocks: Float32Array, scheme: Scheme) -> tuple[Float32Array, UInt8Array | None]:
    """Scales with which the codes span each block exactly (1 for a block of zeros), and the zero points."""
    largest, smallest = blocks.max(axis=0), blocks.min(axis=0)
    if not scheme.symmetric:
        return _asymmetric_range(largest, smallest, scheme)
    steps = np.float32(scheme.default_zero_point)
    if scheme.bits == 4:
        unit = np.where(largest > -smallest, largest, smallest) / -steps
    else:
        unit = np.maximum(largest / (steps - 1), smallest / -steps)
    return _nonzero(unit), None


def _asymmetric_range(
    largest: Float32Array, smallest: Float32Array, scheme: Scheme
) -> tuple[Float32Array, UInt8Array]:
    """Zero is among the codes' values, so that it is exact; hence the range of a block includes it."""
    steps = np.float32(scheme.levels - 1)
    below = np.minimum(smallest, 0) / steps  # divided first: the range of huge values would overflow
    unit = _nonzero(np.subtract(np.maximum(largest, 0) / steps, below))
    return unit, np.rint(below / -unit * steps).astype(np.uint8)


def _nonzero(scales: Float32Array) -> Float32Array:
    """1 for 0, and no scale so small that its reciprocal overflows."""
    magnitude = np.maximum(np.abs(scales), _SMALLEST_SCALE)
    result: Float32Array = np.where(scales == 0, np.float32(1), np.copysign(magnitude, scales))
    return result


def _best_scales(
    blocks: Float32Array,
    unit: Float32Array,
    limits: tuple[Float32Array, Float32Array],
    factors: tuple[float, ...],
) -> Float32Array:
    """``unit`` times what fits best; ``limits`` are the smallest and the largest code."""
    if len(factors) == 1:
        return unit
    normalised = blocks * (np.float32(1) / unit)
    codes = np.empty_like(normalised)
    best = np.zeros_like(unit)
    fit = np.ones_like(unit)
    for factor in factors:
        np.multiply(normalised, np.float32(factor), out=codes)
        np.rint(codes, out=codes)
        _clip(codes, *limits)
        product = np.einsum("ij,ij->j", normalised, codes)
        square = np.einsum("ij,ij->j", codes, codes)
        np.maximum(square, 1, out=square)  # integers: 0 or at least 1
        score = product * product / square
        better = score > best
        np.copyto(best, score, where=better)
        np.copyto(fit, product / square, where=better)
    return unit * fit


def _clip(values: Float32Array, low: Float32Array, high: Float32Array) -> None:
    """The fastest way NumPy has: ``clip`` is vectorised for single limits alone, the others for arrays."""
    if low.ndim == 0:
        np.clip(values, low, high, out=values)
    else:
        np.maximum(values, low, out=values)
        np.minimum(values, high, out=values)


def _representable(scales: Float32Array) -> Float32Array:
    """Round to float16; below its normal numbers, where its steps are wide, upwards: no value is cut off."""
    magnitude = np.abs(scales)
    with np.errstate(over="ignore"):
        rounded = magnitude.astype(np.float16).astype(np.float32)
    steps = np.ceil(np.minimum(magnitude, _HALF_NORMAL) / _HALF_STEP)
    rounded = np.where(magnitude < _HALF_NORMAL, np.maximum(steps, 1) * _HALF_STEP, rounded)
    result: Float32Array = np.copysign(np.where(np.isinf(rounded), magnitude, rounded), scales)
    return result
