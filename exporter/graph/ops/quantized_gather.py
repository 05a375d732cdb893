"""Q2QuantizedGather: torch operator and ONNX function body."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from q2export.contracts.opspec import QUANTIZED_GATHER
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops.library import define
from q2export.exporter.graph.ops.quantized import CODES_OF, dequantize


def quantized_gather_reference(
    indices: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bits: int,
    block_size: int,
) -> Tensor:
    """Rows of dequantized weights; shapes as in ``opspec.QUANTIZED_GATHER``."""
    points = None if weight_zero_point is None else weight_zero_point[indices]
    return dequantize(weight[indices], weight_scale[indices], points, bits, block_size)


def _empty_rows(indices: Tensor, weight: Tensor, weight_scale: Tensor, *rest: Any) -> Tensor:
    columns = weight_scale.shape[1] * rest[-1]
    return weight_scale.new_empty((*indices.shape, columns), dtype=torch.float32)


quantized_gather = define(QUANTIZED_GATHER, quantized_gather_reference, _empty_rows)

_GATHER = """
    last = Constant <value_ints = [-1]> ()
    size = Constant <value_int: int = @block_size> ()
    size_1d = Reshape (size, last)
    packed = Gather (weight, indices)
    scale = Gather (weight_scale, indices)
    scale_shape = Shape (scale)
    code_shape = Concat <axis = 0> (scale_shape, size_1d)
{codes}
    codes_by_block = Reshape (codes, code_shape)
    codes_wide = Cast <to = 1> (codes_by_block)
{centre}
    centred = Sub (codes_wide, centre)
    scale_wide = Cast <to = 1> (scale)
    scale_column = Unsqueeze (scale_wide, last)
    values = Mul (centred, scale_column)
    leading = Shape <start = 0, end = -1> (scale)
    block_count = Shape <start = -1> (scale)
    columns = Mul (block_count, size_1d)
    row_shape = Concat <axis = 0> (leading, columns)
    output = Reshape (values, row_shape)
"""

_ZERO_POINTS = """
    points_leading = Shape <start = 0, end = -1> (packed_points)
    points_bytes = Shape <start = -1> (packed_points)
    points_per_byte = Constant <value_ints = [{per_byte}]> ()
    points_columns = Mul (points_bytes, points_per_byte)
    points_shape = Concat <axis = 0> (points_leading, points_columns)
    point_rows = Reshape (points, points_shape)
    first = Constant <value_ints = [0]> ()
    point_count = Shape <start = -1> (scale)
    point_matrix = Slice (point_rows, first, point_count, last)
    point_wide = Cast <to = 1> (point_matrix)
    centre = Unsqueeze (point_wide, last)
"""


def gather_body(scheme: Scheme) -> str:
    """Function body of ``Q2QuantizedGather``, for schemes with and without zero points."""
    unpack = CODES_OF[scheme.bits]
    centre = f"    centre = Constant <value_float = {scheme.default_zero_point}.0> ()\n"
    if not scheme.symmetric:
        centre = "    packed_points = Gather (weight_zero_point, indices)\n"
        centre += unpack.format(name="points", packed="packed_points")
        centre += _ZERO_POINTS.format(per_byte=8 // scheme.bits)
    return _GATHER.format(codes=unpack.format(name="codes", packed="packed"), centre=centre)
