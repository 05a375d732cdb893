"""Routed experts: the contrib ``MoE`` op against standard ops that dispatch tokens to per-expert Gemms.

``moe-contrib`` takes the experts stacked and gate/up interleaved, so every weight is copied once at build
time. Its CPU kernel returns zeros when its input buffer dies at the node; the ``Where`` that reads the input
after it prevents that. ``split`` keeps every expert where it lies in the checkpoint: tokens sorted by
expert, one Split, per-expert Gemms, and the inverse order gathered back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile


@dataclass(frozen=True)
class MoeShape:
    """Sizes of a chain of mixture-of-experts layers."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int
    layers: int


ExpertBuilder = Callable[[GraphBuilder, str, str], str]
"""Appends the MLP of one expert, given its rows and the prefix of its weights, and returns its output."""


@dataclass(frozen=True)
class MoeLayer:
    """Float32 weights of one layer."""

    router: Float32Array  # [experts, hidden]
    gate: Float32Array  # [experts, intermediate, hidden]
    up: Float32Array  # [experts, intermediate, hidden]
    down: Float32Array  # [experts, hidden, intermediate]


def moe_case(size: str, shape: MoeShape, folder: Path) -> OpCase:
    """Layers of x += MoE(x): softmax over all experts, top-k, not renormalised (as in Qwen2-MoE)."""
    rng = np.random.default_rng(0)
    layers = [_random_layer(rng, shape) for _ in range(shape.layers)]
    stacked, separate = WeightFile(folder / "stacked.bin"), WeightFile(folder / "separate.bin")
    for index, layer in enumerate(layers):
        _write_layer(index, layer, stacked, separate)
    variants = (
        Variant("moe-contrib", _model(stacked, folder / "moe.onnx", shape, split=False)),
        Variant("split", _model(separate, folder / "split.onnx", shape, split=True)),
    )

    def feeds(point: Point) -> Feeds:
        values = np.random.default_rng(1).standard_normal((point.tokens, shape.hidden), dtype=np.float32)
        return {"x": values}

    def reference(inputs: Feeds) -> Float32Array:
        value = inputs["x"].astype(np.float32)
        for layer in layers:
            value = value + reference_layer(value, layer, shape.top_k)
        return value

    return OpCase("moe", size, variants, feeds, reference)


def _random_layer(rng: np.random.Generator, shape: MoeShape) -> MoeLayer:
    def uniform(*dims: int) -> Float32Array:
        bound = np.float32((3.0 / dims[-1]) ** 0.5)
        values: Float32Array = (rng.random(dims, dtype=np.float32) * 2 - 1) * bound
        return values

    experts, inner, hidden = shape.experts, shape.intermediate, shape.hidden
    return MoeLayer(
        uniform(experts, hidden),
        uniform(experts, inner, hidden),
        uniform(experts, inner, hidden),
        uniform(experts, hidden, inner),
    )


def _write_layer(index: int, layer: MoeLayer, stacked: WeightFile, separate: WeightFile) -> None:
    experts, inner, hidden = layer.gate.shape
    interleaved = np.stack([layer.gate, layer.up], axis=2).reshape(experts, 2 * inner, hidden)
    stacked.add(f"{index}.router", layer.router)
    stacked.add(f"{index}.fc1", interleaved)
    stacked.add(f"{index}.fc2", layer.down)
    separate.add(f"{index}.router", layer.router)
    for expert in range(experts):
        for name, weight in (("gate", layer.gate), ("up", layer.up), ("down", layer.down)):
            separate.add(f"{index}.{expert}.{name}", weight[expert])


def reference_layer(x: Float32Array, layer: MoeLayer, top_k: int) -> Float32Array:
    """What the layer gives for ``x [tokens, hidden]``, without the residual."""
    logits = x @ layer.router.T
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    out = np.zeros_like(x)
    for expert in np.unique(chosen):
        rows = np.nonzero((chosen == expert).any(axis=1))[0]
        gate = x[rows] @ layer.gate[expert].T
        hidden = gate / (1 + np.exp(-gate)) * (x[rows] @ layer.up[expert].T)
        out[rows] += scores[rows, expert, None] * (hidden @ layer.down[expert].T)
    return out


def _model(file: WeightFile, path: Path, shape: MoeShape, split: bool) -> Path:
    graph = GraphBuilder(file)
    value = graph.input("x", TensorProto.FLOAT, ["rows", shape.hidden])
    for index in range(shape.layers):
        logits = graph.op("Gemm", [value, graph.weight(f"{index}.router")], {"transB": 1})
        if split:
            routed = split_layer(graph, value, logits, index, shape, _expert)
        else:
            routed = _contrib_layer(graph, value, logits, index, shape)
        value = graph.op("Add", [value, routed])
    graph.output(value, "y")
    return graph.save(path)


def _contrib_layer(graph: GraphBuilder, x: str, logits: str, index: int, shape: MoeShape) -> str:
    attributes: dict[str, int | float | str | Sequence[int]] = {
        "k": shape.top_k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
    }
    fc1, fc2 = graph.weight(f"{index}.fc1"), graph.weight(f"{index}.fc2")
    routed = graph.op("MoE", [x, logits, fc1, "", fc2], attributes, CONTRIB)
    return graph.op("Where", [graph.constant(np.array(False)), x, routed])


def split_layer(
    graph: GraphBuilder, x: str, logits: str, index: int, shape: MoeShape, expert_mlp: ExpertBuilder
) -> str:
    """Tokens sorted by expert, one ``Split``, each part through ``expert_mlp``, and back."""
    probabilities = graph.op("Softmax", [logits], {"axis": -1})
    weights, chosen = graph.add("TopK", [probabilities, graph.ints([shape.top_k])], outputs=2)
    flat = graph.op("Reshape", [chosen, graph.ints([-1])])
    size = graph.op("Shape", [flat])
    _, order = graph.add("TopK", [flat, size], {"largest": 0, "axis": 0}, outputs=2)
    one_hot = graph.op("Equal", [graph.op("Unsqueeze", [flat, graph.ints([1])]), _expert_ids(graph, shape)])
    counts = graph.op(
        "ReduceSum",
        [graph.op("Cast", [one_hot], {"to": TensorProto.INT64}), graph.ints([0])],
        {"keepdims": 0},
    )
    token = graph.op("Div", [order, graph.constant(np.array(shape.top_k, dtype=np.int64))])
    sorted_rows = graph.op("Gather", [x, token])
    per_expert = graph.add("Split", [sorted_rows, counts], {"axis": 0}, outputs=shape.experts)
    outputs = [expert_mlp(graph, rows, f"{index}.{expert}") for expert, rows in enumerate(per_expert)]
    joined = graph.op("Concat", outputs, {"axis": 0})
    _, inverse = graph.add("TopK", [order, size], {"largest": 0, "axis": 0}, outputs=2)
    unsorted = graph.op("Gather", [joined, inverse])
    by_token = graph.op("Reshape", [unsorted, graph.ints([-1, shape.top_k, shape.hidden])])
    weighted = graph.op("Mul", [by_token, graph.op("Unsqueeze", [weights, graph.ints([2])])])
    return graph.op("ReduceSum", [weighted, graph.ints([1])], {"keepdims": 0})


def _expert_ids(graph: GraphBuilder, shape: MoeShape) -> str:
    return graph.constant(np.arange(shape.experts, dtype=np.int64)[None])


def _expert(graph: GraphBuilder, rows: str, prefix: str) -> str:
    gate = graph.op("Gemm", [rows, graph.weight(f"{prefix}.gate")], {"transB": 1})
    up = graph.op("Gemm", [rows, graph.weight(f"{prefix}.up")], {"transB": 1})
    hidden = graph.op("Mul", [graph.op("QuickGelu", [gate], {"alpha": 1.0}, CONTRIB), up])
    return graph.op("Gemm", [hidden, graph.weight(f"{prefix}.down")], {"transB": 1})
