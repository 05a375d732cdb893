"""Cached causal attention with rotary embedding: contrib ``GroupQueryAttention`` against standard ops.

Every variant appends ``sequence`` new tokens per row to a key/value cache that is updated in place, and
attends. Queries are ``[batch, sequence, heads * head_dim]``, caches ``[batch, kv_heads, capacity,
head_dim]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder

_ROPE_THETA = 1e6


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a chain of attention layers, each with a cache of its own."""

    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    capacity: int


LayerBuilder = Callable[[GraphBuilder, str, int, AttentionShape], str]
"""Appends one layer, given the query's name and the layer's index, and returns the name of its output."""


def attention_case(size: str, shape: AttentionShape, folder: Path) -> OpCase:
    """A chain of layers, the output of one being the query of the next."""
    folder.mkdir(parents=True, exist_ok=True)
    in_place = {
        f"present_{kind}.{layer}": f"past_{kind}.{layer}"
        for layer in range(shape.layers)
        for kind in ("key", "value")
    }
    builders: dict[str, LayerBuilder] = {
        "gqa": gqa,
        "rotary+gqa": rotary_gqa,
        "rotary+scatter+attention-24": scatter_attention,
        "rotary+scatter+decomposed": decomposed,
    }
    variants = tuple(
        Variant(
            name,
            _model(folder / f"{name}.onnx", shape, layer),
            in_place=in_place,
            supports=_any_point if "scatter" in name else _gqa_supports,
        )
        for name, layer in builders.items()
    )
    return OpCase(
        "attention",
        size,
        variants,
        lambda point: _feeds(point, shape),
        lambda feeds: _reference(feeds, shape),
    )


def _any_point(point: Point) -> bool:
    return True


def _gqa_supports(point: Point) -> bool:
    """Several new tokens on top of a past need batch 1 (documentation of the op)."""
    return point.batch == 1 or point.sequence == 1 or point.past == 0


def _feeds(point: Point, shape: AttentionShape) -> Feeds:
    rng = np.random.default_rng(3)
    feeds: Feeds = {
        "query": _normal(rng, point.batch, point.sequence, shape.heads * shape.head_dim),
        "key": _normal(rng, point.batch, point.sequence, shape.kv_heads * shape.head_dim),
        "value": _normal(rng, point.batch, point.sequence, shape.kv_heads * shape.head_dim),
    }
    past = np.maximum(point.past - 7 * np.arange(point.batch), 0)  # rows of different lengths
    total = past + point.sequence
    feeds["past_lengths"] = past.astype(np.int64)
    feeds["total_lengths"] = total.astype(np.int64)
    feeds["seqlens_k"] = (total - 1).astype(np.int32)
    feeds["total_sequence_length"] = np.array(total.max(), dtype=np.int32)
    positions = past[:, None] + np.arange(point.sequence)
    feeds["position_ids"] = positions.astype(np.int64)
    visible = np.arange(total.max()) <= positions[:, :, None]  # [batch, sequence, total]
    feeds["mask"] = np.where(visible, 0, -1e30).astype(np.float32)[:, None]
    inverse = _ROPE_THETA ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = np.arange(shape.capacity)[:, None] * inverse
    feeds["cos"], feeds["sin"] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            cache = np.zeros((point.batch, shape.kv_heads, shape.capacity, shape.head_dim), dtype=np.float32)
            for row, length in enumerate(past):
                cache[row, :, :length] = _normal(rng, shape.kv_heads, int(length), shape.head_dim)
            feeds[f"past_{kind}.{layer}"] = cache
    return feeds


def _normal(rng: np.random.Generator, *shape: int) -> Float32Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _reference(feeds: Feeds, shape: AttentionShape) -> Float32Array:
    query = feeds["query"].astype(np.float32)
    batch, sequence, _ = query.shape
    key = _rotate(feeds["key"].reshape(batch, sequence, shape.kv_heads, -1).astype(np.float32), feeds)
    value = feeds["value"].reshape(batch, sequence, shape.kv_heads, -1)
    for layer in range(shape.layers):
        rotated = _rotate(query.reshape(batch, sequence, shape.heads, -1), feeds)
        out = np.empty_like(rotated)
        for row in range(batch):
            past = int(feeds["past_lengths"][row])
            visible = feeds["mask"][row, 0, :, : past + sequence]
            for head in range(shape.heads):
                shared = head * shape.kv_heads // shape.heads
                cached_key = feeds[f"past_key.{layer}"][row, shared, :past]
                keys = np.concatenate([cached_key, key[row, :, shared]])
                cached_value = feeds[f"past_value.{layer}"][row, shared, :past]
                values = np.concatenate([cached_value, value[row, :, shared]])
                scores = rotated[row, :, head] @ keys.T * shape.head_dim**-0.5 + visible
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                out[row, :, head] = weights / weights.sum(axis=-1, keepdims=True) @ values
        query = out.reshape(batch, sequence, -1)
    return query


def _rotate(x: Float32Array, feeds: Feeds) -> Float32Array:
    """Rotate-half RoPE of ``[batch, sequence, heads, head_dim]``."""
    cos, sin = (feeds[name][feeds["position_ids"]][:, :, None] for name in ("cos", "sin"))
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(np.float32)


def _model(path: Path, shape: AttentionShape, layer: LayerBuilder) -> Path:
    graph = GraphBuilder()
    for name, heads in (("query", shape.heads), ("key", shape.kv_heads), ("value", shape.kv_heads)):
        graph.input(name, TensorProto.FLOAT, ["batch", "sequence", heads * shape.head_dim])
    cache: list[int | str] = ["batch", shape.kv_heads, shape.capacity, shape.head_dim]
    for index in range(shape.layers):
        for kind in ("key", "value"):
            graph.input(f"past_{kind}.{index}", TensorProto.FLOAT, cache)
    for name in ("cos", "sin"):
        graph.input(name, TensorProto.FLOAT, [shape.capacity, shape.head_dim // 2])
    graph.input("seqlens_k", TensorProto.INT32, ["batch"])
    graph.input("total_sequence_length", TensorProto.INT32, [])
    for name in ("past_lengths", "total_lengths"):
        graph.input(name, TensorProto.INT64, ["batch"])
    graph.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
    graph.input("mask", TensorProto.FLOAT, ["batch", 1, "sequence", "total"])
    query = "query"
    for index in range(shape.layers):
        query = layer(graph, query, index, shape)
        graph.direct_output(f"present_key.{index}")
        graph.direct_output(f"present_value.{index}")
    graph.output(query, "y")
    return graph.save(path)


def gqa(graph: GraphBuilder, query: str, index: int, shape: AttentionShape) -> str:
    """Contrib op with its own rotary embedding."""
    return _gqa_node(graph, [query, "key"], index, shape, rotary=True)


def rotary_gqa(graph: GraphBuilder, query: str, index: int, shape: AttentionShape) -> str:
    """Contrib op after two standard RotaryEmbedding nodes."""
    rotated = [_rotary_node(graph, query, shape.heads), _rotary_node(graph, "key", shape.kv_heads)]
    return _gqa_node(graph, rotated, index, shape, rotary=False)


def scatter_attention(graph: GraphBuilder, query: str, index: int, shape: AttentionShape) -> str:
    """Standard ops only: RotaryEmbedding-23, TensorScatter-24, Attention-24 with its lengths."""
    rotated = _heads_first(graph, _rotary_node(graph, query, shape.heads), shape.heads)
    key, value = _append(graph, index, shape)
    attributes = {"is_causal": 1, "scale": shape.head_dim**-0.5}
    context = graph.op("Attention", [rotated, key, value, "", "", "", "total_lengths"], attributes)
    return _tokens_first(graph, context)


def decomposed(graph: GraphBuilder, query: str, index: int, shape: AttentionShape) -> str:
    """TensorScatter, then two products; the query heads of one key/value head are rows of one matrix."""
    group = shape.heads // shape.kv_heads
    heads = _heads_first(graph, _rotary_node(graph, query, shape.heads), shape.heads)
    packed = graph.op("Reshape", [heads, graph.ints([0, shape.kv_heads, -1, shape.head_dim])])
    key, value = _append(graph, index, shape)
    end = graph.op("Gather", [graph.op("Shape", ["mask"]), graph.ints([3])])
    start, axis = graph.ints([0]), graph.ints([2])
    key, value = (graph.op("Slice", [cache, start, end, axis]) for cache in (key, value))
    product = {"transB": 1, "alpha": shape.head_dim**-0.5}
    scores = graph.op("FusedMatMul", [packed, key], product, CONTRIB)
    total = graph.op("Concat", [graph.ints([0, shape.kv_heads, group, -1]), end], {"axis": 0})
    per_head = graph.op("Reshape", [scores, total])
    masked = graph.op("Add", [per_head, graph.op("Unsqueeze", ["mask", graph.ints([1])])])
    weights = graph.op("Softmax", [masked], {"axis": -1})
    flat = graph.op("Reshape", [weights, graph.op("Shape", [scores])])
    context = graph.op("MatMul", [flat, value])
    return _tokens_first(graph, graph.op("Reshape", [context, graph.op("Shape", [heads])]))


def _gqa_node(
    graph: GraphBuilder, query_key: list[str], index: int, shape: AttentionShape, rotary: bool
) -> str:
    inputs = [
        *query_key,
        "value",
        f"past_key.{index}",
        f"past_value.{index}",
        "seqlens_k",
        "total_sequence_length",
    ]
    attributes = {
        "num_heads": shape.heads,
        "kv_num_heads": shape.kv_heads,
        "scale": shape.head_dim**-0.5,
        "do_rotary": int(rotary),
    }
    outputs = [f"context.{index}", f"present_key.{index}", f"present_value.{index}"]
    inputs += ["cos", "sin"] if rotary else []
    return graph.add("GroupQueryAttention", inputs, attributes, CONTRIB, outputs)[0]


def _rotary_node(graph: GraphBuilder, x: str, heads: int) -> str:
    return graph.op("RotaryEmbedding", [x, "cos", "sin", "position_ids"], {"num_heads": heads})


def _heads_first(graph: GraphBuilder, x: str, heads: int) -> str:
    """``[batch, sequence, heads * head_dim]`` to ``[batch, heads, sequence, head_dim]``."""
    split = graph.op("Reshape", [x, graph.ints([0, 0, heads, -1])])
    return graph.op("Transpose", [split], {"perm": [0, 2, 1, 3]})


def _tokens_first(graph: GraphBuilder, x: str) -> str:
    swapped = graph.op("Transpose", [x], {"perm": [0, 2, 1, 3]})
    return graph.op("Reshape", [swapped, graph.ints([0, 0, -1])])


def _append(graph: GraphBuilder, index: int, shape: AttentionShape) -> tuple[str, str]:
    """Write the new keys and values into the cache at each row's length."""
    key = _heads_first(graph, _rotary_node(graph, "key", shape.kv_heads), shape.kv_heads)
    value = _heads_first(graph, "value", shape.kv_heads)
    for kind, update in (("key", key), ("value", value)):
        inputs = [f"past_{kind}.{index}", update, "past_lengths"]
        graph.add("TensorScatter", inputs, {"axis": 2}, outputs=[f"present_{kind}.{index}"])
    return f"present_key.{index}", f"present_value.{index}"
