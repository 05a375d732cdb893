"""Round to nearest: every value to the code whose value is nearest to it."""

from __future__ import annotations

import numpy as np

from q2export.contracts.quantization import Method, Scheme
from q2export.exporter.checkpoint.pack import Float32Array, QuantizedRows, UInt8Array
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.quantization.search import BlockParameters, search_parameters


class RoundToNearest:
    """A :class:`~q2export.exporter.quantization.quantizer.Quantizer` that needs nothing but the weights."""

    in_order = False
    chunk_values = 1 << 18  # enough that threads seldom wait for each other between two NumPy calls

    def quantize(self, weight: PackedWeight, first_row: int, rows: Float32Array) -> QuantizedRows:
        """Search the scales of the rows' blocks and round."""
        return round_to_nearest(rows, weight.scheme)

    def method(self, weight: PackedWeight) -> Method:
        """Always the same."""
        return "round-to-nearest"


def round_to_nearest(rows: Float32Array, scheme: Scheme) -> QuantizedRows:
    """Quantize float32 ``[rows, in]``; each row by itself."""
    count, size = rows.shape
    shape = count, size // scheme.block_size
    blocks = np.ascontiguousarray(rows.reshape(-1, scheme.block_size).T)
    parameters = search_parameters(blocks, scheme)
    codes = np.ascontiguousarray(nearest_codes(blocks, parameters, scheme).T).reshape(count, size)
    zero_points = parameters.zero_points
    return QuantizedRows(
        codes,
        parameters.scales.reshape(shape),
        None if zero_points is None else zero_points.reshape(shape),
    )


def nearest_codes(blocks: Float32Array, parameters: BlockParameters, scheme: Scheme) -> UInt8Array:
    """Codes of ``[block_size, blocks]``, of the same shape; ties go to the even multiple of the scale."""
    values = blocks * (1 / parameters.scales)
    np.rint(values, out=values)
    values += scheme.default_zero_point if parameters.zero_points is None else parameters.zero_points
    np.clip(values, 0, scheme.levels - 1, out=values)
    return values.astype(np.uint8)
