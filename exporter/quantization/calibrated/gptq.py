"""GPTQ: rounding column after column, each error made up for in the columns that follow.

Frantar et al. 2022 (arXiv 2210.17323), algorithm 1. For inputs ``x`` with ``H = sum(x x^T)``, an error ``e``
in column ``j`` of a row does least harm if the columns after it change by ``-e / U[j, j] * U[j, j + 1:]``,
where ``U`` is the upper triangular factor of ``H^-1 = U^T U``. Rows are independent of each other. A block's
scale is chosen when its first column is reached, from the values as they are by then.
"""

from __future__ import annotations

import numpy as np

from q2export.contracts.quantization import Scheme
from q2export.exporter.checkpoint.pack import Float32Array, QuantizedRows, UInt8Array
from q2export.exporter.quantization.round_to_nearest import nearest_codes
from q2export.exporter.quantization.search import BlockParameters, search_parameters

PANEL = 128
"""Columns whose errors reach those after the panel in one matmul; a multiple of all block sizes."""


def gptq(rows: Float32Array, factor: Float32Array, scheme: Scheme) -> QuantizedRows:
    """Quantize rows of a matrix.

    Args:
        rows: ``[rows, in]``, finite.
        factor: ``U``, ``[in, in]``, see :class:`q2export.exporter.quantization.calibrated.hessian.Hessian`.
        scheme: how they are stored.
    """
    remaining = np.ascontiguousarray(rows.T)  # a column of the matrix is contiguous
    size, count = remaining.shape
    codes = np.empty((size, count), np.uint8)
    parameters: list[BlockParameters] = []
    for first in range(0, size, PANEL):
        panel = slice(first, min(first + PANEL, size))
        errors = np.empty((panel.stop - first, count), np.float32)
        for start in range(first, panel.stop, scheme.block_size):
            block = slice(start, start + scheme.block_size)
            chosen = search_parameters(remaining[block], scheme)
            parameters.append(chosen)
            for column in range(block.start, block.stop):
                codes[column] = nearest_codes(remaining[column][None], chosen, scheme)[0]
                lost = remaining[column] - _values(codes[column], chosen, scheme)
                error = errors[column - first] = lost / factor[column, column]
                rest = slice(column + 1, panel.stop)
                remaining[rest] -= np.multiply.outer(factor[column, rest], error)
        remaining[panel.stop :] -= factor[panel, panel.stop :].T @ errors
    zero_points = [one.zero_points for one in parameters if one.zero_points is not None]
    return QuantizedRows(
        np.ascontiguousarray(codes.T),
        np.stack([one.scales for one in parameters], axis=1),
        np.stack(zero_points, axis=1) if zero_points else None,
    )


def _values(codes: UInt8Array, parameters: BlockParameters, scheme: Scheme) -> Float32Array:
    """What codes of one column stand for."""
    zero_points = scheme.default_zero_point if parameters.zero_points is None else parameters.zero_points
    values: Float32Array = (
        codes.astype(np.float32) - np.asarray(zero_points, np.float32)
    ) * parameters.scales
    return values
