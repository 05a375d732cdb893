"""Quantized weights rounded once more, to int8 with one scale per output: what prefill multiplies with.

``MatMulIntegerToFloat`` takes one scale per column of its operand ``[in, out]``. The values are those of the
blocks, not of the unquantized weights, so that prompt and generated tokens see the same model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from q2export.exporter.checkpoint.folder import Checkpoint, RawBits
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.weights.bind import Binding
from q2export.exporter.weights.stack import Form

_LARGEST_CODE = 127
_BLOCK_BYTES = 8 << 20

Int8Array = npt.NDArray[np.int8]
Float32Array = npt.NDArray[np.float32]


class Int8Columns:
    """Data of initializers of the forms ``INT8_COLUMNS`` and ``INT8_COLUMN_SCALES``.

    One matrix is in memory at a time; the scales of the last one are kept, for they come next.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._made_of: tuple[PackedWeight, ...] = ()
        self._scales: Float32Array = np.empty(0, np.float32)

    def blocks(self, binding: Binding) -> Iterator[RawBits]:
        """The data of a binding, in blocks of 8 MiB."""
        if binding.form is Form.INT8_COLUMNS:
            codes, self._scales = self._round(binding.weights)
            self._made_of = binding.weights
            data = codes.reshape(-1).view(np.uint8)
        else:
            if self._made_of != binding.weights:
                self._scales = self._round(binding.weights)[1]
                self._made_of = binding.weights
            data = self._scales.view(np.uint8)
        for start in range(0, data.size, _BLOCK_BYTES):
            yield data[start : start + _BLOCK_BYTES]

    def _round(self, weights: tuple[PackedWeight, ...]) -> tuple[Int8Array, Float32Array]:
        """Codes ``[in, out]`` and scales ``[out]`` of matrices ``[out, in]`` one below the other."""
        values = ParameterValues(self._checkpoint, {weight.name: weight for weight in weights})
        rows = sum(weight.shape[0] for weight in weights)
        codes = np.empty((weights[0].shape[1], rows), np.int8)
        scales = np.empty(rows, np.float32)
        start = 0
        for weight in weights:
            for first, slice_ in values.slices(weight.name):
                where = slice(start + first, start + first + len(slice_))
                largest = np.abs(slice_).max(axis=1)
                scales[where] = np.where(largest > 0, largest / np.float32(_LARGEST_CODE), np.float32(1))
                codes[:, where] = np.rint(slice_ / scales[where, None]).T
            start += weight.shape[0]
        return codes, scales
