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
from q2export.exporter.passes.base import constant, insert
from q2export.exporter.passes.onnxruntime.attention import MICROSOFT
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
        self,
        graph: ir.Graph,
        before: ir.Node,
        x: ir.Value,
        weights: Sequence[PackedWeight],
        bias: ir.Value | None,
        path: str,
    ) -> ir.Value:
        """Insert the nodes before one and return ``[tokens, rows of all weights]``.

        Args:
            graph: to insert into. before: a node that ``x`` is there for.
            x: ``[tokens, in]``.
            weights: matrices ``[out, in]`` that are one below the other in one matrix.
            bias: ``[rows of all weights]``.
            path: names the nodes.
        """


class NBitsMatMul:
    """One ``MatMulNBits``; ``accuracy_level`` says how activations are multiplied."""

    def __init__(self, accuracy_level: int) -> None:
        self.accuracy_level = accuracy_level

    def __call__(
        self,
        graph: ir.Graph,
        before: ir.Node,
        x: ir.Value,
        weights: Sequence[PackedWeight],
        bias: ir.Value | None,
        path: str,
    ) -> ir.Value:
        """See :class:`MatMul`."""
        first = weights[0]
        name = first.tensor if len(weights) == 1 else f"{path}.weight"
        matrix = kernel_operands(graph, name, weights, by_block=True)
        last = [] if bias is None else [None, bias]  # before it, a deprecated input
        matmul = insert(
            graph,
            before,
            "MatMulNBits",
            [x, matrix.codes, matrix.scales, matrix.zero_points, *last],
            name=f"{path}/MatMulNBits",
            domain=MICROSOFT,
            attributes={
                "N": sum(weight.rows for weight in weights),
                "K": first.shape[1],
                "bits": first.scheme.bits,
                "block_size": first.scheme.block_size,
                "accuracy_level": self.accuracy_level,
            },
        )
        return matmul.outputs[0]


class RowScaledMatMul:
    """``MatMulIntegerToFloat`` of int8 weights and activations rounded to uint8, each row with its own scale.

    The op takes one scale for all activations only, so it is given 1, and its result is multiplied by the
    scales of the rows. A value that several matmuls read is rounded once.
    """

    def __init__(self) -> None:
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._zero_points: ir.Value | None = None

    def __call__(
        self,
        graph: ir.Graph,
        before: ir.Node,
        x: ir.Value,
        weights: Sequence[PackedWeight],
        bias: ir.Value | None,
        path: str,
    ) -> ir.Value:
        """See :class:`MatMul`."""
        if x not in self._rounded:
            self._rounded[x] = self._round(graph, before, x, path)
        codes, row_scales = self._rounded[x]
        columns, rows = weights[0].shape[1], sum(weight.shape[0] for weight in weights)
        name = weights[0].name if len(weights) == 1 else f"{path}.weight"
        made_of = [tensor for weight in weights for tensor in weight.tensors]
        matrix = view(
            graph, f"{name}/int8", ir.DataType.INT8, [columns, rows], made_of, Form.INT8_COLUMNS, weights
        )
        scales = view(
            graph, f"{name}/int8_scale", ir.DataType.FLOAT, [rows], made_of, Form.INT8_COLUMN_SCALES, weights
        )
        one, zero = (
            _scalar(graph, "activation_scale", np.float32(1)),
            _scalar(graph, "zero_point", np.uint8(_ZERO_POINT)),
        )
        matmul = insert(
            graph,
            before,
            "MatMulIntegerToFloat",
            [codes, matrix, one, scales, zero],
            name=f"{path}/MatMulIntegerToFloat",
            domain=MICROSOFT,
        ).outputs[0]
        scaled = insert(graph, before, "Mul", [matmul, row_scales], name=f"{path}/scaled").outputs[0]
        if bias is None:
            return scaled
        return insert(graph, before, "Add", [scaled, bias], name=f"{path}/biased").outputs[0]

    def _round(self, graph: ir.Graph, before: ir.Node, x: ir.Value, path: str) -> tuple[ir.Value, ir.Value]:
        """Codes ``[tokens, in]`` and row scales ``[tokens, 1]``: a row's largest magnitude becomes 127."""

        def node(op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
            return insert(
                graph, before, op_type, inputs, name=f"{path}/input/{name}", attributes=attributes
            ).outputs[0]

        magnitudes = node("Abs", [x], "magnitudes")
        last_axis = constant(graph, "const/last_axis", ir.tensor(np.array([-1], np.int64)))
        largest = node("ReduceMax", [magnitudes, last_axis], "largest", keepdims=1)
        scales = node(
            "Max",
            [
                node("Mul", [largest, _scalar(graph, "code_size", np.float32(1 / _LARGEST_CODE))], "scale"),
                _scalar(graph, "smallest_scale", _SMALLEST_SCALE),
            ],
            "positive_scale",
        )
        flat = node("Reshape", [scales, last_axis], "row_scales")
        if self._zero_points is None:
            count = node("Shape", [flat], "rows")
            zero = _scalar(graph, "zero_point", np.uint8(_ZERO_POINT))
            self._zero_points = node("Expand", [zero, count], "zero_points")
        return node("QuantizeLinear", [x, flat, self._zero_points], "codes", axis=0), scales


def _scalar(graph: ir.Graph, name: str, value: np.generic) -> ir.Value:
    return constant(graph, f"const/{name}", ir.tensor(np.array(value)))
