"""What quantizing did to each weight, counted on the way from what is written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from q2export.contracts.quantization import Method
from q2export.exporter.checkpoint.pack import Float32Array
from q2export.exporter.checkpoint.packed import PackedWeight

Float64Array = npt.NDArray[np.float64]

_WIDENED_VALUES = 1 << 18


@dataclass(frozen=True)
class WeightStatistics:
    """One quantized weight.

    Attributes:
        name: Hugging Face name.
        shape: ``(out, in)``.
        squared_error: sum over all values of (value - dequantized value) ** 2.
        squared_norm: sum of value ** 2.
        source_bytes: before.
        stored_bytes: of codes, scales and zero points.
        method: how it was quantized; a method that calibrates may round some to nearest.
    """

    name: str
    shape: tuple[int, int]
    squared_error: float
    squared_norm: float
    source_bytes: int
    stored_bytes: int
    method: Method = "round-to-nearest"

    @property
    def relative_error(self) -> float:
        """Root mean square of the difference over that of the weight; 0 for a weight of zeros."""
        return relative_error((self,))


def relative_error(weights: Iterable[WeightStatistics]) -> float:
    """Root mean square of the differences over that of the values, of several weights together."""
    found = tuple(weights)
    norm = math.fsum(one.squared_norm for one in found)
    return math.sqrt(math.fsum(one.squared_error for one in found) / norm) if norm > 0 else 0.0


@dataclass(frozen=True)
class RowErrors:
    """Sums over each of some rows, float64 ``[rows]``: large values would overflow float32 when squared."""

    squared_error: Float64Array
    squared_norm: Float64Array


def row_errors(rows: Float32Array, dequantized: Float32Array) -> RowErrors:
    """Compare ``[rows, in]`` before and after."""
    return RowErrors(_row_squares(dequantized - rows), _row_squares(rows))


def _row_squares(rows: Float32Array) -> Float64Array:
    squares = np.empty(len(rows))
    step = max(1, _WIDENED_VALUES // rows.shape[1])
    for first in range(0, len(rows), step):
        wide = rows[first : first + step].astype(np.float64)
        np.einsum("ij,ij->i", wide, wide, out=squares[first : first + step])
    return squares


class WeightSums:
    """Gathers the rows of one weight, in whatever order they are done, and adds them up in theirs."""

    def __init__(self, weight: PackedWeight, source_bytes: int) -> None:
        self.weight = weight
        self._source_bytes = source_bytes
        self._missing = weight.shape[0]
        self._errors = np.zeros(self._missing)
        self._norms = np.zeros(self._missing)

    def add(self, first_row: int, errors: RowErrors) -> bool:
        """Take the sums of some rows; True when these were the last."""
        rows = slice(first_row, first_row + len(errors.squared_error))
        self._errors[rows] = errors.squared_error
        self._norms[rows] = errors.squared_norm
        self._missing -= len(errors.squared_error)
        return self._missing == 0

    def statistics(self, method: Method) -> WeightStatistics:
        """The sums over all rows."""
        weight = self.weight
        return WeightStatistics(
            weight.name,
            weight.shape,
            float(self._errors.sum()),
            float(self._norms.sum()),
            self._source_bytes,
            weight.nbytes,
            method,
        )
