"""Values of parameters in float32, whatever form the checkpoint has them in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from q2export.exporter.checkpoint.folder import Checkpoint, TensorRef, read_blocks
from q2export.exporter.checkpoint.pack import QuantizedRows, UInt8Array, unpack
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.values import convert_block

Float32Array = npt.NDArray[np.float32]

_SLICE_VALUES = 1 << 22


class ParameterValues:
    """Reads parameters by Hugging Face name; quantized ones are dequantized.

    Args:
        checkpoint: where the tensors are.
        packed: the quantized weights, by Hugging Face name.
    """

    def __init__(self, checkpoint: Checkpoint, packed: Mapping[str, PackedWeight]) -> None:
        self._tensors = checkpoint.tensors
        self._packed = packed
        self._orders: dict[str, npt.NDArray[np.int32]] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        weight = self._packed.get(name)
        return self._tensors[name].shape if weight is None else weight.shape

    def read(self, name: str) -> Float32Array:
        """A whole parameter."""
        shape = self.shape(name)
        if len(shape) < 2:
            return self._floats(self._tensors[name])
        values = np.empty(shape, np.float32)
        for first, rows in self.slices(name):
            values[first : first + len(rows)] = rows
        return values

    def slices(self, name: str) -> Iterator[tuple[int, Float32Array]]:
        """A matrix in slices of some rows, at least one: index of the first row, and the rows."""
        rows, columns = self.shape(name)
        step = max(1, _SLICE_VALUES // columns)
        for first in range(0, rows, step):
            yield first, self.rows(name, first, min(step, rows - first))

    def rows(self, name: str, first: int, count: int) -> Float32Array:
        """``count`` rows of a matrix from row ``first`` on; nothing else of it is read."""
        weight = self._packed.get(name)
        if weight is None:
            return self._floats(_rows_of(self._tensors[name], first, count))
        values = self._packed_rows(weight, first, count).dequantized(weight.scheme)
        values = values[weight.first_row :: weight.row_step]
        return values if weight.input_order is None else self._in_order(values, weight.input_order)

    def _packed_rows(self, weight: PackedWeight, first: int, count: int) -> QuantizedRows:
        """Rows of the tensors that hold a weight, with those of others between its own."""
        first, count = first * weight.row_step, count * weight.row_step
        bits, (_, columns) = weight.scheme.bits, weight.shape
        codes = _bytes(_rows_of(self._tensors[weight.tensor], first, count))
        scales = self._floats(_rows_of(self._tensors[weight.scale_name], first, count))
        if weight.zero_point_name is None:
            return QuantizedRows(unpack(codes, bits, columns), scales)
        points = _bytes(_rows_of(self._tensors[weight.zero_point_name], first, count))
        return QuantizedRows(unpack(codes, bits, columns), scales, unpack(points, bits, weight.blocks))

    def _in_order(self, values: Float32Array, tensor: str) -> Float32Array:
        """Columns that are stored in the order ``tensor``, put where they belong."""
        if tensor not in self._orders:
            raw = [block for _, block in read_blocks(self._tensors[tensor])]
            self._orders[tensor] = np.concatenate(raw).view(np.int32)
        result = np.empty_like(values)
        result[:, self._orders[tensor]] = values
        return result

    def _floats(self, ref: TensorRef) -> Float32Array:
        values = np.empty(ref.shape, np.float32)
        flat = values.reshape(-1)
        for start, raw in read_blocks(ref):
            flat[start : start + raw.size] = convert_block(raw, ref.dtype, "F32").view(np.float32)
        return values


def _rows_of(ref: TensorRef, first: int, count: int) -> TensorRef:
    row_bytes = math.prod(ref.shape[1:]) * ref.itemsize
    return replace(
        ref,
        shape=(count, *ref.shape[1:]),
        offset=ref.offset + first * row_bytes,
        nbytes=count * row_bytes,
    )


def _bytes(ref: TensorRef) -> UInt8Array:
    """A tensor of dtype U8."""
    values = np.empty(ref.shape, np.uint8)
    flat = values.reshape(-1)
    for start, raw in read_blocks(ref):
        flat[start : start + raw.size] = raw
    return values
