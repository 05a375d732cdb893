"""``DequantizeLinear`` before every use of a quantized weight: quantization in standard ONNX.

The portable graph has unsigned codes and scales as they are on disk; the scales are cast to float32, in which
values are exact. TensorRT takes signed codes only, without zero points, and scales of the type it computes in
(:class:`Operands`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.graph.nodes import constant
from q2export.exporter.passes.base import Inserter, PassResult
from q2export.exporter.passes.packed_operands import (
    SCALE_TYPE,
    PackedPass,
    PackedWeights,
    packed_operand,
    require_all_lowered,
    view,
)
from q2export.exporter.weights.stack import Form

_UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class Operands:
    """In which types codes and scales are given.

    Attributes:
        signed: codes are signed, and zero points are zero.
        dtype: what the graph computes in.
        scale_dtype: of the scales that are multiplied with; where it is not ``dtype``, the dequantized weight
            is cast.
    """

    signed: bool
    dtype: ir.DataType
    scale_dtype: ir.DataType


class DequantizeWeights(PackedPass):
    """A weight that is read as floating point becomes ``DequantizeLinear`` of its codes.

    Args:
        packed: the quantized weights.
        operands: the types of codes and scales.
    """

    def __init__(self, packed: PackedWeights, operands: Operands) -> None:
        super().__init__(packed)
        self.operands = operands

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Dequantize every weight once, before the first node that reads it."""
        dequantizer = _Dequantizer(model.graph, self.operands)
        for node in list(model.graph):
            for index in range(len(node.inputs)):
                weight = packed_operand(self.packed, node, index)
                if weight is not None:
                    node.replace_input_with(index, dequantizer.weight(node, weight))
        result.matched = len(dequantizer.tensors)

    def ensures(self, model: ir.Model) -> None:
        """No quantized weight is read as floating point."""
        require_all_lowered(model.graph, self.packed)


@dataclass
class _Dequantizer:
    """Makes every value once.

    Attributes:
        tensors: what was dequantized, by name of the stored tensor.
        weights: the same by name of the weight; a tensor may hold two.
        zero_points: equal ones, by shape.
    """

    graph: ir.Graph
    operands: Operands
    tensors: dict[str, ir.Value] = field(default_factory=dict)
    weights: dict[str, ir.Value] = field(default_factory=dict)
    zero_points: dict[tuple[int, int], ir.Value] = field(default_factory=dict)

    def weight(self, node: ir.Node, weight: PackedWeight) -> ir.Value:
        """A weight in floating point, ``[out, in]``; new nodes stand before ``node``."""
        if weight.tensor not in self.tensors:
            self.tensors[weight.tensor] = self._dequantized(node, weight)
        if weight.name not in self.weights:
            self.weights[weight.name] = _rows(self.graph, node, weight, self.tensors[weight.tensor])
        return self.weights[weight.name]

    def _dequantized(self, node: ir.Node, weight: PackedWeight) -> ir.Value:
        """All rows of the tensor that holds a weight, ``[rows, in]``."""
        operands, shape = self.operands, [weight.rows, weight.shape[1]]
        path = weight.tensor.removesuffix(".weight")
        emit = Inserter(self.graph, node, path)
        inputs = [self._codes(weight), self._scales(emit, weight)]
        value = emit.op(
            "DequantizeLinear",
            inputs if operands.signed else [*inputs, self._zero_points(weight)],
            attributes={"axis": 1, "block_size": weight.scheme.block_size},
            dtype=operands.scale_dtype,
            shape=shape,
        )
        return value if operands.scale_dtype == operands.dtype else emit.cast(value, operands.dtype, "weight")

    def _codes(self, weight: PackedWeight) -> ir.Value:
        bits, form = weight.scheme.bits, Form.SIGNED_CODES if self.operands.signed else Form.BYTES
        dtype = _SIGNED[bits] if self.operands.signed else _UNSIGNED[bits]
        shape = [weight.rows, weight.shape[1]]
        return view(self.graph, f"{weight.tensor}/codes", dtype, shape, [weight.tensor], form)

    def _scales(self, emit: Inserter, weight: PackedWeight) -> ir.Value:
        """Converted for TensorRT, which takes constants alone; else as they are stored, cast in the graph."""
        wanted, shape = self.operands.scale_dtype, list(weight.scale_shape)
        dtype = wanted if self.operands.signed else SCALE_TYPE
        label = "scale" if dtype == SCALE_TYPE else f"scale_{dtype.name.lower()}"
        scales = view(self.graph, f"{weight.tensor}/{label}", dtype, shape, [weight.scale_name], Form.VALUES)
        return scales if dtype == wanted else emit.cast(scales, wanted, "wide_scale")

    def _zero_points(self, weight: PackedWeight) -> ir.Value:
        """``[rows, blocks]``, in the type of the codes."""
        bits, shape = weight.scheme.bits, weight.scale_shape
        if weight.zero_point_name is None:
            if shape not in self.zero_points:
                self.zero_points[shape] = self._equal_zero_points(weight)
            return self.zero_points[shape]
        form = Form.UNPADDED_NIBBLES if bits == 4 and weight.blocks % 2 else Form.BYTES
        name = f"{weight.tensor}/zero_point"
        return view(self.graph, name, _UNSIGNED[bits], list(shape), [weight.zero_point_name], form)

    def _equal_zero_points(self, weight: PackedWeight) -> ir.Value:
        """The same zero point everywhere, made where the graph runs, once for all weights of a shape.

        ``DequantizeLinear`` wants them in the shape of the scales; ``Expand`` takes no 4-bit types.
        """
        bits, (rows, blocks) = weight.scheme.bits, weight.scale_shape
        emit, name = Inserter(self.graph, next(iter(self.graph)), "zero_point"), f"{rows}x{blocks}"
        code = np.array([[weight.scheme.default_zero_point]], dtype=np.uint8)
        one = constant(self.graph, f"const/zero_point_code_{bits}", code)
        value = emit.op(
            "Expand", [one, emit.int64([rows, blocks])], f"{name}/bytes",
            dtype=ir.DataType.UINT8, shape=[rows, blocks],
        )  # fmt: skip
        return value if bits == 8 else emit.cast(value, _UNSIGNED[bits], name)


def _rows(graph: ir.Graph, node: ir.Node, weight: PackedWeight, tensor: ir.Value) -> ir.Value:
    """The rows of one weight, ``[out, in]``, of the tensor that holds it."""
    if weight.row_step == 1:
        return tensor
    rows, columns = weight.shape
    emit = Inserter(graph, node, weight.name.removesuffix(".weight"))
    split = emit.int64([rows, weight.row_step, columns])
    alternating = emit.op("Reshape", [tensor, split], "alternating")
    return emit.op(
        "Gather", [alternating, emit.int64(weight.first_row)], "rows",
        attributes={"axis": 1}, dtype=tensor.dtype, shape=[rows, columns],
    )  # fmt: skip
