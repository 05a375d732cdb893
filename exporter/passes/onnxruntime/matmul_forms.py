"""How matmuls with quantized weights are written for ONNX Runtime on the CPU.

:class:`NBitsMatMul` multiplies with the codes as they are stored. :class:`RowScaledMatMul` multiplies with
an int8 copy of one scale per output, more than twice as fast where there are many rows
(``benchmarks/results/ort_quantized.md``): made for prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.graph.nodes import constant
from q2export.exporter.passes.base import Inserter
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT
from q2export.exporter.passes.packed_operands import kernel_operands, view
from q2export.exporter.weights.stack import Form

FLOAT32_ACTIVATIONS, INT8_ACTIVATIONS = 1, 4
"""Values of ``accuracy_level``; with the second one, activations are rounded to int8, block by block."""

_ZERO_POINT = 128
_LARGEST_CODE = 127
_SMALLEST_SCALE = np.float32(1e-30)
"""Of a row; it keeps a row of zeros from being divided by zero."""


class MatMul(Protocol):
    """Writes ``x @ weight.T + bias``."""

    def __call__(
        self, emit: Inserter, x: ir.Value, weights: Sequence[PackedWeight], bias: ir.Value | None
    ) -> ir.Value:
        """Insert the nodes and return ``[tokens, rows of all weights]``.

        Args:
            emit: inserts them, after ``x`` is there.
            x: ``[tokens, in]``.
            weights: matrices ``[out, in]`` that are one below the other in one matrix.
            bias: ``[rows of all weights]``.
        """


class NBitsMatMul:
    """One ``MatMulNBits``; ``accuracy_level`` says how activations are multiplied."""

    def __init__(self, accuracy_level: int) -> None:
        self.accuracy_level = accuracy_level

    def __call__(
        self, emit: Inserter, x: ir.Value, weights: Sequence[PackedWeight], bias: ir.Value | None
    ) -> ir.Value:
        """See :class:`MatMul`."""
        first = weights[0]
        name = first.tensor if len(weights) == 1 else f"{emit.path}.weight"
        matrix = kernel_operands(emit.graph, name, weights, by_block=True)
        last = [] if bias is None else [None, bias]  # before it, a deprecated input
        return emit.op(
            "MatMulNBits",
            [x, matrix.codes, matrix.scales, matrix.zero_points, *last],
            domain=MICROSOFT,
            attributes={
                "N": sum(weight.rows for weight in weights),
                "K": first.shape[1],
                "bits": first.scheme.bits,
                "block_size": first.scheme.block_size,
                "accuracy_level": self.accuracy_level,
            },
        )


class RowScaledMatMul:
    """``MatMulIntegerToFloat`` of int8 weights and activations rounded to uint8, each row with its own scale.

    The op takes one scale for all activations only, so it is given 1, and its result is multiplied by the
    scales of the rows. A value that several matmuls read is rounded once.
    """

    def __init__(self) -> None:
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._zero_points: ir.Value | None = None

    def __call__(
        self, emit: Inserter, x: ir.Value, weights: Sequence[PackedWeight], bias: ir.Value | None
    ) -> ir.Value:
        """See :class:`MatMul`."""
        graph = emit.graph
        if x not in self._rounded:
            self._rounded[x] = self._round(emit.under("input"), x)
        codes, row_scales = self._rounded[x]
        columns, rows = weights[0].shape[1], sum(weight.shape[0] for weight in weights)
        name = weights[0].name if len(weights) == 1 else f"{emit.path}.weight"
        made_of = [tensor for weight in weights for tensor in weight.tensors]
        matrix = view(
            graph, f"{name}/int8", ir.DataType.INT8, [columns, rows], made_of, Form.INT8_COLUMNS, weights
        )
        scales = view(
            graph, f"{name}/int8_scale", ir.DataType.FLOAT, [rows], made_of, Form.INT8_COLUMN_SCALES, weights
        )
        one = _scalar(graph, "activation_scale", np.float32(1))
        zero = _scalar(graph, "zero_point", np.uint8(_ZERO_POINT))
        matmul = emit.op("MatMulIntegerToFloat", [codes, matrix, one, scales, zero], domain=MICROSOFT)
        scaled = emit.op("Mul", [matmul, row_scales], "scaled")
        return scaled if bias is None else emit.op("Add", [scaled, bias], "biased")

    def _round(self, emit: Inserter, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Codes ``[tokens, in]`` and row scales ``[tokens, 1]``: a row's largest magnitude becomes 127."""
        last_axis = emit.int64([-1])
        magnitudes = emit.op("Abs", [x], "magnitudes")
        largest = emit.op("ReduceMax", [magnitudes, last_axis], "largest", attributes={"keepdims": 1})
        code_size = _scalar(emit.graph, "code_size", np.float32(1 / _LARGEST_CODE))
        smallest = _scalar(emit.graph, "smallest_scale", _SMALLEST_SCALE)
        scales = emit.op("Max", [emit.op("Mul", [largest, code_size], "scale"), smallest], "positive_scale")
        flat = emit.op("Reshape", [scales, last_axis], "row_scales")
        if self._zero_points is None:
            zero = _scalar(emit.graph, "zero_point", np.uint8(_ZERO_POINT))
            self._zero_points = emit.op("Expand", [zero, emit.op("Shape", [flat], "rows")], "zero_points")
        codes = emit.op("QuantizeLinear", [x, flat, self._zero_points], "codes", attributes={"axis": 0})
        return codes, scales


def _scalar(graph: ir.Graph, name: str, value: np.generic) -> ir.Value:
    return constant(graph, f"const/{name}", np.array(value))
