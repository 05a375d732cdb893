"""``Q2RotaryAttention`` -> ``com.microsoft.GroupQueryAttention`` with rotation and an in-place cache.

The kernel takes several new tokens on top of a past only at batch 1; the ONNX Runtime backend feeds it so
(``runtime/backends/onnxruntime.py``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.graph.nodes import constant
from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    attribute_float,
    attribute_int,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.passes.onnxruntime.contrib import MICROSOFT

COS_CACHE, SIN_CACHE = "rotary/cos_cache", "rotary/sin_cache"
_FLAT_SHAPE = "shape/tokens_flat"
_HEAD_DIM_MULTIPLE = 16
"""ONNX Runtime 1.31 refuses other head sizes at the first token (``group_query_attention_helper.h``)."""


class LowerAttention(Pass):
    """``Q2RotaryAttention`` becomes ``GroupQueryAttention``.

    Args:
        max_capacity: tokens a sequence may hold, the rows of the cos and sin tables.
    """

    def __init__(self, max_capacity: int) -> None:
        self.max_capacity = max_capacity

    def requires(self, model: ir.Model) -> None:
        """Rotation and attention must have been fused."""
        left = nodes_of(model.graph, opspec.ATTENTION.name, opspec.DOMAIN)
        if left:
            raise ExportError(
                f"{left[0].name}: run FuseRotaryAttention first; this attention has no rotation"
            )

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every fused attention whose heads the kernel takes; the others run as function body."""
        graph = model.graph
        nodes = []
        for node in nodes_of(graph, opspec.ROTARY_ATTENTION.name, opspec.DOMAIN):
            head_dim = _head_dim(node)
            if head_dim % _HEAD_DIM_MULTIPLE:
                result.refused.append(
                    f"{node.name}: head_dim {head_dim} is not a multiple of {_HEAD_DIM_MULTIPLE}"
                )
            else:
                nodes.append(node)
        if not nodes:
            return
        _require_one_rotation(nodes)
        lengths = _lengths(graph, nodes[0])
        tables = self._tables(graph, nodes[0])
        for node in nodes:
            self._lower(graph, node, lengths, tables)
            result.matched += 1

    def _tables(self, graph: ir.Graph, node: ir.Node) -> list[ir.Value]:
        """Cos and sin of every position, float32 arithmetic throughout as transformers has it."""
        frequencies = input_of(node, 7).const_value
        if frequencies is None:
            raise ExportError(f"{node.name}: inv_freq is not a constant")
        positions = np.arange(self.max_capacity, dtype=np.float32)
        angle = positions[:, None] * frequencies.numpy()[None, :]
        factor = np.float32(attribute_float(node, "attention_factor"))
        dtype = input_of(node, 0).dtype or ir.DataType.FLOAT
        return [
            constant(graph, name, (wave(angle) * factor).astype(dtype.numpy()))
            for name, wave in ((COS_CACHE, np.cos), (SIN_CACHE, np.sin))
        ]

    def _lower(self, graph: ir.Graph, node: ir.Node, lengths: list[ir.Value], tables: list[ir.Value]) -> None:
        emit = Inserter(graph, node)
        heads, kv_heads = attribute_int(node, "num_heads"), attribute_int(node, "num_kv_heads")
        flat_shape = _flat_shape(graph, node)
        flat = [
            _flatten(emit, input_of(node, index), flat_shape, label)
            for index, label in enumerate(("query", "key", "value"))
        ]
        window = attribute_int(node, "sliding_window")
        shape = node.outputs[0].shape
        if shape is None:
            raise ExportError(f"{node.name}: its output has no shape")
        output = ir.Value(
            name=f"{emit.path}/flat",
            type=node.outputs[0].type,
            shape=ir.Shape([shape[0], shape[1], heads * _head_dim(node)]),
        )
        lowered = emit.node(
            "GroupQueryAttention",
            [*flat, input_of(node, 3), input_of(node, 4), *lengths, *tables],
            [output, ir.Value(), ir.Value()],
            domain=MICROSOFT,
            attributes={
                "num_heads": heads,
                "kv_num_heads": kv_heads,
                "scale": attribute_float(node, "scale"),
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "local_window_size": window or -1,
            },
        )
        split = emit.op("Reshape", [output, emit.int64([0, 0, heads, -1])], "heads")
        replace(graph, node, [split, *lowered.outputs[1:]])


def _require_one_rotation(nodes: list[ir.Node]) -> None:
    """The tables and the lengths are made once, for all layers."""
    first = nodes[0]
    for node in nodes:
        same_inputs = all(input_of(node, index) is input_of(first, index) for index in (5, 6, 7))
        factors = attribute_float(node, "attention_factor"), attribute_float(first, "attention_factor")
        if not same_inputs or factors[0] != factors[1]:
            raise ExportError(
                f"{node.name}: other lengths, frequencies or attention factor than {first.name}"
            )


def _head_dim(node: ir.Node) -> int:
    shape = input_of(node, 0).shape
    if shape is None or not isinstance(shape[3], int):
        raise ExportError(f"{node.name}: its query has no known head_dim")
    return shape[3]


def _flat_shape(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """The vector ``[batch, sequence, -1]``, computed once."""
    for existing in graph:
        if existing.name == _FLAT_SHAPE:
            return existing.outputs[0]
    input_ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
    if input_ids is None:
        raise ExportError("the graph has no input 'input_ids' to take batch and sequence from")
    emit = Inserter(graph, node, "shape")
    tokens = emit.op("Shape", [input_ids], "tokens")
    return emit.op("Concat", [tokens, emit.int64([-1])], "tokens_flat", attributes={"axis": 0})


def _flatten(emit: Inserter, source: ir.Value, flat_shape: ir.Value, label: str) -> ir.Value:
    """``[batch, sequence, heads, head_dim]`` -> ``[batch, sequence, heads * head_dim]``."""
    shape = None
    if source.shape is not None:
        batch, sequence, heads, head_dim = source.shape
        shape = ir.Shape([batch, sequence, int(heads) * int(head_dim)])  # type: ignore[arg-type]
    return emit.op("Reshape", [source, flat_shape], label, dtype=source.dtype, shape=shape)


def _lengths(graph: ir.Graph, first: ir.Node) -> list[ir.Value]:
    """The op's own form of the lengths, computed once: total - 1 per row, the longest total; int32."""
    past, query = input_of(first, 5), input_of(first, 6)
    emit = Inserter(graph, first, "lengths")
    total = emit.op("Add", [past, query], "total")
    last = emit.op("Sub", [total, emit.int64(1)], "last")
    longest = emit.op("ReduceMax", [total], "longest", attributes={"keepdims": 0})
    return [
        emit.cast(last, ir.DataType.INT32, "seqlens_k"),
        emit.cast(longest, ir.DataType.INT32, "total_sequence_length"),
    ]
