"""``Q2RotaryAttention`` -> ``com.microsoft.GroupQueryAttention`` with rotation and an in-place cache.

The kernel takes several new tokens on top of a past only at batch 1; the ONNX Runtime backend feeds it so
(``runtime/backends/onnxruntime.py``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.passes.base import (
    Pass,
    PassResult,
    attribute_float,
    attribute_int,
    constant,
    input_of,
    insert,
    nodes_of,
    replace,
)

MICROSOFT = "com.microsoft"
COS_CACHE, SIN_CACHE = "rotary/cos_cache", "rotary/sin_cache"
_FLAT_SHAPE = "shape/tokens_flat"
_HEAD_DIM_MULTIPLE = 16
"""ONNX Runtime 1.31 refuses other head sizes at the first token (``group_query_attention_helper.h``)."""


class LowerAttentionToOnnxRuntime(Pass):
    """Attributes:
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
        graph.opset_imports[MICROSOFT] = 1

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
            constant(graph, name, ir.tensor((wave(angle) * factor).astype(dtype.numpy()), name=name))
            for name, wave in ((COS_CACHE, np.cos), (SIN_CACHE, np.sin))
        ]

    def _lower(self, graph: ir.Graph, node: ir.Node, lengths: list[ir.Value], tables: list[ir.Value]) -> None:
        path = (node.name or "").rsplit("/", 1)[0]
        heads, kv_heads = attribute_int(node, "num_heads"), attribute_int(node, "num_kv_heads")
        flat_shape = _flat_shape(graph, node)
        labels = ("query", "key", "value")
        flat = [
            _flatten(graph, node, index, flat_shape, f"{path}/{label}") for index, label in enumerate(labels)
        ]
        window = attribute_int(node, "sliding_window")
        output = ir.Value(name=f"{path}/flat")
        presents = [ir.Value(), ir.Value()]
        lowered = insert(
            graph,
            node,
            "GroupQueryAttention",
            [*flat, input_of(node, 3), input_of(node, 4), *lengths, *tables],
            name=f"{path}/GroupQueryAttention",
            domain=MICROSOFT,
            attributes={
                "num_heads": heads,
                "kv_num_heads": kv_heads,
                "scale": attribute_float(node, "scale"),
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "local_window_size": window or -1,
            },
            outputs=[output, *presents],
        )
        shape = node.outputs[0].shape
        if shape is None:
            raise ExportError(f"{node.name}: its output has no shape")
        width = heads * _head_dim(node)
        output.shape, output.type = ir.Shape([shape[0], shape[1], width]), node.outputs[0].type
        four = constant(graph, f"const/heads_{heads}", ir.tensor(np.array([0, 0, heads, -1], dtype=np.int64)))
        split = insert(graph, node, "Reshape", [output, four], name=f"{path}/heads")
        replace(graph, node, [split.outputs[0], *lowered.outputs[1:]])


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
    rest = constant(graph, "const/rest", ir.tensor(np.array([-1], dtype=np.int64)))
    tokens = insert(graph, node, "Shape", [input_ids], name="shape/tokens").outputs[0]
    return insert(graph, node, "Concat", [tokens, rest], name=_FLAT_SHAPE, attributes={"axis": 0}).outputs[0]


def _flatten(graph: ir.Graph, node: ir.Node, index: int, shape: ir.Value, name: str) -> ir.Value:
    """``[batch, sequence, heads, head_dim]`` -> ``[batch, sequence, heads * head_dim]``."""
    source = input_of(node, index)
    flat = insert(graph, node, "Reshape", [source, shape], name=name).outputs[0]
    if source.shape is not None:
        batch, sequence, heads, head_dim = source.shape
        width = int(heads) * int(head_dim)  # type: ignore[arg-type]
        flat.shape, flat.type = ir.Shape([batch, sequence, width]), source.type
    return flat


def _lengths(graph: ir.Graph, first: ir.Node) -> list[ir.Value]:
    """The op's own form of the lengths, computed once: total - 1 per row, the longest total; int32."""
    past, query = input_of(first, 5), input_of(first, 6)
    one = constant(graph, "const/one", ir.tensor(np.array(1, dtype=np.int64)))
    total = insert(graph, first, "Add", [past, query], name="lengths/total").outputs[0]
    last = insert(graph, first, "Sub", [total, one], name="lengths/last").outputs[0]
    longest = insert(
        graph, first, "ReduceMax", [total], name="lengths/longest", attributes={"keepdims": 0}
    ).outputs[0]
    int32 = {"to": int(ir.DataType.INT32)}
    return [
        insert(graph, first, "Cast", [last], name="lengths/seqlens_k", attributes=int32).outputs[0],
        insert(
            graph, first, "Cast", [longest], name="lengths/total_sequence_length", attributes=int32
        ).outputs[0],
    ]
