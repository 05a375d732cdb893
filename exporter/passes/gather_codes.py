"""``Gather`` of rows of a quantized embedding in standard ONNX: gather the codes, then dequantize those rows.

``Gather`` takes no 4-bit types, and dequantizing the whole table for a few rows would cost more than the rest
of a decode step. So the table is seen as int32, as many codes to a word as fit, the first in the lowest bits
(the bytes on disk are little-endian). With ``p`` the power of two below code ``j``, and ``mod`` that of
floored division, code ``j`` of a word ``w`` is ``((w - w mod p) / p) mod 2**bits``, also where ``w`` is
negative; no intermediate overflows. Bitwise operators would be shorter; TensorRT-RTX 1.7 does not parse them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.graph.nodes import constant
from q2export.exporter.passes.base import Inserter, PassResult, input_of, nodes_of, replace
from q2export.exporter.passes.packed_operands import SCALE_TYPE, PackedPass, packed_operand, view
from q2export.exporter.weights.stack import Form

_INT32, _FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


class GatherCodes(PackedPass):
    """``Gather`` of a quantized weight becomes ``Gather`` of its codes, dequantized."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every gather of a quantized weight."""
        graph = model.graph
        for gather in nodes_of(graph, "Gather"):
            weight = packed_operand(self.packed, gather, 0)
            if weight is not None:
                replace(graph, gather, [_dequantized_rows(graph, gather, weight)])
                result.matched += 1


def _dequantized_rows(graph: ir.Graph, gather: ir.Node, weight: PackedWeight) -> ir.Value:
    """``[..., in]`` of the rows whose indices ``gather`` reads, ``[...]``, in the type of its output."""
    emit, indices, scheme = Inserter(graph, gather), input_of(gather, 1), weight.scheme
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
        graph,
        f"{weight.tensor}/scale",
        SCALE_TYPE,
        list(weight.scale_shape),
        [weight.scale_name],
        Form.VALUES,
    )
    codes = _unpacked(emit, emit.op("Gather", [words, indices], "words"), scheme.bits, 32, "codes")
    shape = emit.int64([*leading, weight.blocks, scheme.block_size])
    blocks = emit.cast(emit.op("Reshape", [codes, shape], "blocks"), _FLOAT, "values")
    centred = emit.op("Sub", [blocks, _zero_points(emit, weight, indices, leading)], "centred")
    wide = emit.cast(emit.op("Gather", [scales, indices], "scales"), _FLOAT, "scales/wide")
    scale = emit.op("Unsqueeze", [wide, emit.int64([-1])], "scale")
    rows = emit.op("Mul", [centred, scale], "scaled")
    rows = emit.op("Reshape", [rows, emit.int64([*leading, weight.shape[1]])], "rows")
    wanted = gather.outputs[0].dtype or _FLOAT
    return rows if wanted == _FLOAT else emit.cast(rows, wanted)


def _unpacked(emit: Inserter, packed: ir.Value, bits: int, word: int, label: str) -> ir.Value:
    """Codes, int32 ``[..., words, codes of a word]``, of int32 words of ``word`` bits each."""
    powers = _int32(emit.graph, [1 << shift for shift in range(0, word, bits)])
    word_column = emit.op("Unsqueeze", [packed, emit.int64([-1])], f"{label}/word")
    below = emit.op("Mod", [word_column, powers], f"{label}/below")
    shifted = emit.op(
        "Div", [emit.op("Sub", [word_column, below], f"{label}/rest"), powers], f"{label}/shifted"
    )
    return emit.op("Mod", [shifted, _int32(emit.graph, [1 << bits])], label)


def _int32(graph: ir.Graph, values: Sequence[int]) -> ir.Value:
    return constant(graph, "const/int32_" + "_".join(map(str, values)), np.array(values, dtype=np.int32))


def _zero_points(emit: Inserter, weight: PackedWeight, indices: ir.Value, leading: Sequence[int]) -> ir.Value:
    """float32, broadcast to ``[..., blocks, block_size]``."""
    scheme = weight.scheme
    if weight.zero_point_name is None:
        zero = np.array(scheme.default_zero_point, dtype=np.float32)
        return constant(emit.graph, f"const/zero_point_{scheme.bits}", zero)
    table = view(
        emit.graph,
        f"{weight.tensor}/zero_point_bytes",
        ir.DataType.UINT8,
        list(weight.zero_point_shape),
        [weight.zero_point_name],
    )
    gathered = emit.op("Gather", [table, indices], "zero_point/bytes")
    if scheme.bits == 8:
        points = gathered
    else:
        words = emit.cast(gathered, _INT32, "zero_point/words")
        both = _unpacked(emit, words, scheme.bits, 8, "zero_point/codes")
        row = emit.op("Reshape", [both, emit.int64([*leading, -1])], "zero_point/row")
        first, count, last = emit.int64([0]), emit.int64([weight.blocks]), emit.int64([-1])
        points = emit.op("Slice", [row, first, count, last], "zero_point/points")
    values = emit.cast(points, _FLOAT, "zero_point/values")
    return emit.op("Unsqueeze", [values, emit.int64([-1])], "zero_point")
