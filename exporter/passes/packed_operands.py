"""Initializers that see quantized weights as the ops of a target want them.

Several may see the same bytes; none has data of its own. The data are bound later, by
``exporter/weights/bind.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from q2export.contracts.quantization import Activations, Scheme
from q2export.errors import ExportError
from q2export.exporter.checkpoint.packed import SCALE_DTYPE, PackedWeight
from q2export.exporter.graph.nodes import AttributeValue, initializer
from q2export.exporter.passes.base import Pass
from q2export.exporter.weights.stack import META_KEY, Form, Stack

SCALE_TYPE = ir.DataType[SCALE_DTYPE.onnx]
"""Of scales as they are stored."""

PackedWeights = Mapping[str, PackedWeight]
"""Quantized weights by Hugging Face name, which is also that of their initializer in the traced graph."""


class PackedPass(Pass):
    """A pass over what reads quantized weights.

    Args:
        packed: the quantized weights.
    """

    def __init__(self, packed: PackedWeights) -> None:
        self.packed = packed


class PackedOpPass(PackedPass):
    """A pass that makes our ops over packed weights.

    Args:
        packed: the quantized weights; all of a graph have one scheme.
        activations: the type they have in matmuls with quantized weights.
    """

    def __init__(self, packed: PackedWeights, activations: Activations) -> None:
        super().__init__(packed)
        self.activations = activations

    @property
    def scheme(self) -> Scheme:
        """Of every quantized weight."""
        return next(iter(self.packed.values())).scheme

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """Of the ops."""
        return {
            "bits": self.scheme.bits,
            "block_size": self.scheme.block_size,
            "int8_activations": int(self.activations == "int8"),
        }


def view(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    tensors: Sequence[str],
    form: Form = Form.BYTES,
) -> ir.Value:
    """Return the initializer ``name``, adding it at first use as made of tensors of the checkpoint."""
    value = initializer(graph, name, dtype, shape)
    value.meta.setdefault(META_KEY, Stack(tuple(tensors), form))
    return value


@dataclass(frozen=True)
class KernelOperands:
    """What our kernels and ONNX Runtime's take of a quantized matrix, or of several stacked ones.

    Attributes:
        codes: uint8, or int32 words of four bytes. scales: floating point. zero_points: uint8, packed as the
            codes, each row padded to whole bytes; None where the scheme is symmetric.
    """

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None


def kernel_operands(
    graph: ir.Graph,
    name: str,
    weights: Sequence[PackedWeight],
    *,
    experts: int = 0,
    scale_dtype: ir.DataType = SCALE_TYPE,
    words: bool = False,
) -> KernelOperands:
    """Make the operands of rows that follow each other.

    Args:
        graph: to add them to.
        name: of the matrix; its parts are called ``NAME/codes``, ``NAME/scale`` and ``NAME/zero_point``.
        weights: rows of one after those of the other; of weights that share a tensor, one stands for all.
        experts: number of equal matrices the rows are divided into, which becomes the first axis; 0 for none.
        scale_dtype: of the scales, which are converted where they are not of that type on disk.
        words: see the codes as int32 words of four bytes.
    """
    first = weights[0]
    rows = sum(weight.rows for weight in weights)
    leading = [experts, rows // experts] if experts else [rows]
    tensors = [weight.tensor for weight in weights]
    row_bytes = first.codes_shape[1]
    if words:
        codes = view(graph, f"{name}/words", ir.DataType.INT32, [*leading, row_bytes // 4], tensors)
    else:
        codes = view(graph, f"{name}/codes", ir.DataType.UINT8, [*leading, row_bytes], tensors)
    tensors = [weight.scale_name for weight in weights]
    scales = view(graph, f"{name}/scale", scale_dtype, [*leading, first.blocks], tensors, Form.VALUES)
    tensors = [weight.zero_point_name for weight in weights if weight.zero_point_name is not None]
    if not tensors:
        return KernelOperands(codes, scales, None)
    shape = [*leading, first.zero_point_shape[1]]
    return KernelOperands(codes, scales, view(graph, f"{name}/zero_point", ir.DataType.UINT8, shape, tensors))


def packed_operand(packed: PackedWeights, node: ir.Node, index: int) -> PackedWeight | None:
    """The quantized weight that ``node`` reads as its input ``index``; None if that is no such weight."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not value.is_initializer() or META_KEY in value.meta:
        return None
    return packed.get(value.name or "")


def require_all_lowered(graph: ir.Graph, packed: PackedWeights) -> None:
    """Raise ExportError where a node still reads a quantized weight as if it were floating point."""
    for node in graph:
        for index, _ in enumerate(node.inputs):
            weight = packed_operand(packed, node, index)
            if weight is not None:
                raise ExportError(
                    f"{node.name}: {node.op_type} reads the quantized weight {weight.name!r} in a way that "
                    "has no translation"
                )
