"""``Gather`` of rows of a quantized embedding in standard ONNX: gather the codes, then dequantize those rows.

``Gather`` takes no 4-bit types, and dequantizing the whole table for a few rows would cost more than the rest
of a decode step. So the table is seen as int32, as many codes to a word as fit, the first in the lowest bits
(the bytes on disk are little-endian). With ``p`` the power of two below code ``j``, and ``mod`` that of
floored division, code ``j`` of a word ``w`` is ``((w - w mod p) / p) mod 2**bits``, also where ``w`` is
negative; no intermediate overflows. Bitwise operators would be shorter; TensorRT-RTX 1.7 does not parse them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.passes.base import (
    AttributeValue,
    Pass,
    PassResult,
    constant,
    input_of,
    insert,
    nodes_of,
    replace,
)
from q2export.exporter.passes.packed_operands import PackedWeights, packed_operand, view
from q2export.exporter.weights.stack import Form

_INT32, _FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


class GatherCodes(Pass):
    """Attributes:
    packed: the quantized weights.
    """

    def __init__(self, packed: PackedWeights) -> None:
        self.packed = packed

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every gather of a quantized weight."""
        graph = model.graph
        for gather in nodes_of(graph, "Gather"):
            weight = packed_operand(self.packed, gather, 0)
            if weight is not None:
                replace(graph, gather, [_dequantized_rows(graph, gather, weight)])
                result.matched += 1


@dataclass(frozen=True)
class _Emitter:
    """Inserts nodes before ``anchor``, under its path."""

    graph: ir.Graph
    anchor: ir.Node

    def op(
        self, op_type: str, label: str, *inputs: ir.Value, attributes: dict[str, AttributeValue] | None = None
    ) -> ir.Value:
        path = (self.anchor.name or "").rsplit("/", 1)[0]
        node = insert(self.graph, self.anchor, op_type, inputs, name=f"{path}/{label}", attributes=attributes)
        return node.outputs[0]

    def int64(self, *values: int) -> ir.Value:
        name = "const/vector_" + "_".join(str(value).replace("-", "m") for value in values)
        return constant(self.graph, name, ir.tensor(np.array(values, dtype=np.int64)))

    def int32(self, values: Sequence[int]) -> ir.Value:
        name = "const/int32_" + "_".join(map(str, values))
        return constant(self.graph, name, ir.tensor(np.array(values, dtype=np.int32)))


def _dequantized_rows(graph: ir.Graph, gather: ir.Node, weight: PackedWeight) -> ir.Value:
    """``[..., in]`` of the rows whose indices ``gather`` reads, ``[...]``, in the type of its output."""
    emit, indices, scheme = _Emitter(graph, gather), input_of(gather, 1), weight.scheme
    rank = len(indices.shape) if indices.shape is not None else 2
    leading = [0] * rank  # sizes of the indices: Reshape copies them
    words = view(
        graph,
        f"{weight.tensor}/words",
        _INT32,
        [weight.rows, weight.codes_shape[1] // 4],
        [weight.tensor],
    )
    scales = view(
        graph, f"{weight.tensor}/scale", _FLOAT, list(weight.scale_shape), [weight.scale_name], Form.VALUES
    )
    codes = _unpacked(emit, emit.op("Gather", "words", words, indices), scheme.bits, 32, "codes")
    shape = emit.int64(*leading, weight.blocks, scheme.block_size)
    blocks = emit.op(
        "Cast", "values", emit.op("Reshape", "blocks", codes, shape), attributes={"to": _FLOAT.value}
    )
    centred = emit.op("Sub", "centred", blocks, _zero_points(emit, weight, indices, leading))
    scale = emit.op("Unsqueeze", "scale", emit.op("Gather", "scales", scales, indices), emit.int64(-1))
    rows = emit.op("Mul", "scaled", centred, scale)
    rows = emit.op("Reshape", "rows", rows, emit.int64(*leading, weight.shape[1]))
    wanted = gather.outputs[0].dtype or _FLOAT
    return rows if wanted == _FLOAT else emit.op("Cast", "Cast", rows, attributes={"to": wanted.value})


def _unpacked(emit: _Emitter, packed: ir.Value, bits: int, word: int, label: str) -> ir.Value:
    """Codes, int32 ``[..., words, codes of a word]``, of int32 words of ``word`` bits each."""
    powers = emit.int32([1 << shift for shift in range(0, word, bits)])
    word_column = emit.op("Unsqueeze", f"{label}/word", packed, emit.int64(-1))
    below = emit.op("Mod", f"{label}/below", word_column, powers)
    shifted = emit.op("Div", f"{label}/shifted", emit.op("Sub", f"{label}/rest", word_column, below), powers)
    return emit.op("Mod", label, shifted, emit.int32([1 << bits]))


def _zero_points(emit: _Emitter, weight: PackedWeight, indices: ir.Value, leading: Sequence[int]) -> ir.Value:
    """float32, broadcast to ``[..., blocks, block_size]``."""
    scheme = weight.scheme
    if weight.zero_point_name is None:
        zero = np.array(scheme.default_zero_point, dtype=np.float32)
        return constant(emit.graph, f"const/zero_point_{scheme.bits}", ir.tensor(zero))
    table = view(
        emit.graph,
        f"{weight.tensor}/zero_point_bytes",
        ir.DataType.UINT8,
        list(weight.zero_point_shape),
        [weight.zero_point_name],
    )
    gathered = emit.op("Gather", "zero_point/bytes", table, indices)
    if scheme.bits == 8:
        points = gathered
    else:
        words = emit.op("Cast", "zero_point/words", gathered, attributes={"to": _INT32.value})
        both = _unpacked(emit, words, scheme.bits, 8, "zero_point/codes")
        row = emit.op("Reshape", "zero_point/row", both, emit.int64(*leading, -1))
        first, count, last = emit.int64(0), emit.int64(weight.blocks), emit.int64(-1)
        points = emit.op("Slice", "zero_point/points", row, first, count, last)
    values = emit.op("Cast", "zero_point/values", points, attributes={"to": _FLOAT.value})
    return emit.op("Unsqueeze", "zero_point", values, emit.int64(-1))
