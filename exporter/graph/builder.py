"""A small builder over onnx-ir: nodes named by path, shared constants, shared symbolic dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.graph import nodes
from q2export.exporter.graph.nodes import AttributeValue

DimPiece = int | str
"""One entry of a shape: a number (or -1), or the name of a symbolic dimension."""


class GraphBuilder:
    """Builds one ``ir.Graph``, node by node, in topological order."""

    def __init__(self, name: str, opset_imports: Mapping[str, int]) -> None:
        self.graph = ir.Graph(inputs=(), outputs=(), nodes=(), opset_imports=dict(opset_imports), name=name)
        self._dims: dict[str, ir.Value] = {}
        self._shapes: dict[tuple[DimPiece, ...], ir.Value] = {}
        self._names: dict[str, int] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Append a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Append ``value`` as the graph output called ``name``."""
        value.name = name
        self.graph.outputs.append(value)

    def initializer(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """Return the initializer called ``name``, without data (see ``bind``); made at its first use."""
        return nodes.initializer(self.graph, name, dtype, shape)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Register ``array`` as the initializer called ``name``, stored in the ONNX file itself."""
        return nodes.constant(self.graph, name, array)

    def int64(self, values: int | Sequence[int]) -> ir.Value:
        """Return an int64 constant: a scalar for an int, a vector for a sequence; equal ones are shared."""
        return nodes.int64(self.graph, values)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        domain: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
        outputs: Sequence[ir.Value] | None = None,
    ) -> ir.Node:
        """Append a node; ``name`` is made unique by a numbered suffix where it repeats."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        unique = name if count == 0 else f"{name}_{count}"
        values = [ir.Value()] if outputs is None else outputs
        node = nodes.make_node(op_type, inputs, values, name=unique, domain=domain, attributes=attributes)
        self.graph.append(node)
        return node

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        domain: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> ir.Value:
        """Append a node with one output and return it."""
        return self.node(op_type, inputs, name=name, domain=domain, attributes=attributes).outputs[0]

    def define_dim(self, dim: str, source: ir.Value, axis: int) -> None:
        """Say that the symbolic dimension ``dim`` is the size of ``source`` along ``axis``."""
        self._dims[dim] = self.op(
            "Shape", [source], name=f"dim/{dim}", attributes={"start": axis, "end": axis + 1}
        )
        self._dims[dim].shape = ir.Shape([1])
        self._dims[dim].dtype = ir.DataType.INT64

    def dim(self, dim: str) -> ir.Value:
        """Return the int64 vector ``[1]`` holding a symbolic dimension."""
        if dim not in self._dims:
            raise ExportError(f"the graph uses the dimension {dim!r}, which no input defines")
        return self._dims[dim]

    def shape(self, pieces: Sequence[DimPiece]) -> ir.Value:
        """Return the int64 vector of ``pieces``; equal shapes are computed once."""
        key = tuple(pieces)
        if all(isinstance(piece, int) for piece in key):
            return self.int64([piece for piece in key if isinstance(piece, int)])
        if key not in self._shapes:
            parts = [self.int64([piece]) if isinstance(piece, int) else self.dim(piece) for piece in key]
            if len(parts) == 1:
                return parts[0]
            label = "_".join(str(piece).replace("-", "m") for piece in key)
            value = self.op("Concat", parts, name=f"shape/{label}", attributes={"axis": 0})
            value.shape, value.dtype = ir.Shape([len(parts)]), ir.DataType.INT64
            self._shapes[key] = value
        return self._shapes[key]
