"""Nodes and constants of an onnx-ir graph, named alike wherever they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

AttributeValue = int | float | str | Sequence[int]


def make_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[ir.Value],
    *,
    name: str,
    domain: str = "",
    attributes: Mapping[str, AttributeValue] | None = None,
) -> ir.Node:
    """Return a node that is in no graph yet; outputs without a name take the node's."""
    for index, value in enumerate(outputs):
        value.name = value.name or (name if len(outputs) == 1 else f"{name}:{index}")
    return ir.node(
        op_type, inputs, attributes=dict(attributes or {}), domain=domain, outputs=list(outputs), name=name
    )


def initializer(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """Return the initializer ``name``, without data (see ``exporter/weights``); made at its first use."""
    value = graph.initializers.get(name)
    if value is None:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        graph.initializers.add(value)
    return value


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initializer ``name``, made with the data of ``array`` at its first use."""
    value = initializer(graph, name, ir.DataType.from_numpy(array.dtype), array.shape)
    if value.const_value is None:
        value.const_value = ir.tensor(array, name=name)
    return value


def int64(graph: ir.Graph, values: int | Sequence[int]) -> ir.Value:
    """Return an int64 constant: a scalar for an int, a vector for a sequence; equal ones are shared."""
    kind, flat = ("scalar", (values,)) if isinstance(values, int) else ("vector", tuple(values))
    label = "_".join(str(value).replace("-", "m") for value in flat)
    return constant(graph, f"const/{kind}_{label}", np.array(values, dtype=np.int64))
