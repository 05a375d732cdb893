"""A KV cache of another type than what is computed in."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.contracts.step import PAST, PRESENT, tensor_named
from q2export.errors import ExportError
from q2export.exporter.passes.base import Pass, PassResult


class NarrowCache(Pass):
    """Inputs and outputs of the KV cache take another type; attention converts what it appends and reads.

    Args:
        dtype: of keys and values.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = dtype

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Change the type of every cache."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if tensor_named(value.name or "") in (*PAST, *PRESENT) and value.dtype != self.dtype:
                value.type = ir.TensorType(self.dtype)
                result.matched += 1

    def ensures(self, model: ir.Model) -> None:
        """Nothing but attention, which takes any type, reads a cache."""
        for value in model.graph.inputs:
            for node in value.consumers() if tensor_named(value.name or "") in PAST else ():
                if node.op_type != opspec.ROTARY_ATTENTION.name:
                    raise ExportError(f"{node.name}: {node.op_type} reads the KV cache {value.name!r}")
