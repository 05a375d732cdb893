"""Linear layers: how to multiply with a weight stored ``[out, in]``, as Hugging Face checkpoints do.

``gemm`` maps the weight as it lies on disk. ``gemm-prepacked`` and ``matmul`` (weight transposed beforehand)
pay a copy. ``gemm-flipped`` computes ``W x^T``, in which the weight is the left operand and needs no
transposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import Float32Array, GraphBuilder, WeightFile


@dataclass(frozen=True)
class LinearShape:
    """A chain of ``layers`` pairs of projections, hidden -> intermediate -> hidden."""

    hidden: int
    intermediate: int
    layers: int


@dataclass(frozen=True)
class HeadShape:
    """The language-model head, hidden -> vocab."""

    hidden: int
    vocab: int


def linear_case(size: str, shape: LinearShape, folder: Path) -> OpCase:
    """The chain of projections, each with a weight of its own."""
    rng = np.random.default_rng(0)
    shapes = [(shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)] * shape.layers
    weights = [_weight(rng, *dims) for dims in shapes]
    file = WeightFile(folder / "weights.bin")
    for index, weight in enumerate(weights):
        file.add(f"w{index}", weight)
        file.add(f"wt{index}", weight.T)
    variants = (
        Variant("gemm", _chain(file, folder / "gemm.onnx", len(shapes), "gemm")),
        Variant("gemm-prepacked", folder / "gemm.onnx", prepack=True),
        Variant("matmul", _chain(file, folder / "matmul.onnx", len(shapes), "matmul")),
        Variant("matmul-prepacked", folder / "matmul.onnx", prepack=True),
        Variant("gemm-flipped", _chain(file, folder / "flipped.onnx", len(shapes), "flipped")),
    )

    def reference(feeds: Feeds) -> Float32Array:
        value = feeds["x"].astype(np.float32)
        for weight in weights:
            value = value @ weight.T
        return value

    total = sum(weight.nbytes for weight in weights)
    return OpCase("linear", size, variants, lambda point: _rows(point, shape.hidden), reference, total)


def head_case(size: str, shape: HeadShape, folder: Path) -> OpCase:
    """The language-model head at as many rows as logits are asked for."""
    weight = _weight(np.random.default_rng(1), shape.vocab, shape.hidden)
    file = WeightFile(folder / "weights.bin")
    file.add("w0", weight)
    variants = (
        Variant("gemm", _chain(file, folder / "gemm.onnx", 1, "gemm")),
        Variant("gemm-prepacked", folder / "gemm.onnx", prepack=True),
        Variant("gemm-flipped", _chain(file, folder / "flipped.onnx", 1, "flipped")),
    )

    def reference(feeds: Feeds) -> Float32Array:
        logits: Float32Array = feeds["x"].astype(np.float32) @ weight.T
        return logits

    return OpCase("head", size, variants, lambda point: _rows(point, shape.hidden), reference, weight.nbytes)


def _weight(rng: np.random.Generator, rows: int, columns: int) -> Float32Array:
    """Uniform values that keep the scale of the activations through the layer."""
    bound = np.float32((3.0 / columns) ** 0.5)
    values: Float32Array = (rng.random((rows, columns), dtype=np.float32) * 2 - 1) * bound
    return values


def _rows(point: Point, hidden: int) -> Feeds:
    return {"x": np.random.default_rng(2).standard_normal((point.tokens, hidden), dtype=np.float32)}


def _chain(file: WeightFile, path: Path, count: int, kind: str) -> Path:
    graph = GraphBuilder(file)
    value = graph.input("x", TensorProto.FLOAT, ["rows", "hidden"])
    for index in range(count):
        if kind == "gemm":
            value = graph.op("Gemm", [value, graph.weight(f"w{index}")], {"transB": 1})
        elif kind == "matmul":
            value = graph.op("MatMul", [value, graph.weight(f"wt{index}")])
        else:
            product = graph.op("Gemm", [graph.weight(f"w{index}"), value], {"transB": 1})
            value = graph.op("Transpose", [product], {"perm": [1, 0]})
    graph.output(value, "y")
    return graph.save(path)
