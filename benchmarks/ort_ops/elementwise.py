"""Residual + RMSNorm, and SiLU gating: contrib fusions against standard ops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile

_EPSILON = 1e-6


@dataclass(frozen=True)
class NormShape:
    """Width of the residual stream and number of norms in the chain."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class SwigluShape:
    """Width of the gated activation and number of them in the chain."""

    intermediate: int
    layers: int


def norm_case(size: str, shape: NormShape, folder: Path) -> OpCase:
    """A chain of steps: residual += branch; branch = RMSNorm(residual) * gamma."""
    hidden, layers = shape.hidden, shape.layers
    gammas = np.random.default_rng(0).uniform(0.5, 1.5, (layers, hidden)).astype(np.float32)
    file = WeightFile(folder / "weights.bin")
    for layer, gamma in enumerate(gammas):
        file.add(f"gamma{layer}", gamma)
    names = ("skip-simplified-layer-norm", "add+rms-normalization", "add+simplified-layer-norm")
    variants = tuple(
        Variant(name, _norm_graph(file, folder / f"{name}.onnx", layers, name)) for name in names
    )

    def feeds(point: Point) -> Feeds:
        rng = np.random.default_rng(1)
        dims = (point.batch, point.sequence, hidden)
        return {name: rng.standard_normal(dims, dtype=np.float32) for name in ("x", "branch")}

    def reference(inputs: Feeds) -> Float32Array:
        residual, branch = inputs["x"].astype(np.float32), inputs["branch"].astype(np.float32)
        for gamma in gammas:
            residual = residual + branch
            mean = np.mean(np.square(residual.astype(np.float64)), axis=-1, keepdims=True)
            branch = (residual / np.sqrt(mean + _EPSILON) * gamma).astype(np.float32)
        return residual + branch

    return OpCase("norm", size, variants, feeds, reference)


def _norm_graph(file: WeightFile, path: Path, layers: int, name: str) -> Path:
    graph = GraphBuilder(file)
    shape = ["batch", "sequence", "hidden"]
    residual, branch = (
        graph.input("x", TensorProto.FLOAT, shape),
        graph.input("branch", TensorProto.FLOAT, shape),
    )
    for layer in range(layers):
        gamma = graph.weight(f"gamma{layer}")
        if name == "skip-simplified-layer-norm":
            branch, _, _, residual = graph.add(
                "SkipSimplifiedLayerNormalization",
                [branch, residual, gamma],
                {"epsilon": _EPSILON},
                CONTRIB,
                outputs=[f"branch{layer}", "", "", f"residual{layer}"],
            )
        else:
            op_type = "RMSNormalization" if "rms" in name else "SimplifiedLayerNormalization"
            residual = graph.op("Add", [residual, branch])
            branch = graph.op(op_type, [residual, gamma], {"epsilon": _EPSILON, "axis": -1})
    graph.output(graph.op("Add", [residual, branch]), "y")
    return graph.save(path)


def swiglu_case(size: str, shape: SwigluShape, folder: Path) -> OpCase:
    """A chain of steps: x = silu(x) * up."""
    names = ("quick-gelu+mul", "sigmoid+mul+mul", "swish+mul")
    variants = tuple(
        Variant(name, _swiglu_graph(folder / f"{name}.onnx", shape.layers, name)) for name in names
    )

    def feeds(point: Point) -> Feeds:
        rng = np.random.default_rng(1)
        dims = (point.tokens, shape.intermediate)
        return {
            "x": rng.standard_normal(dims, dtype=np.float32),
            "up": rng.uniform(0.5, 1.0, dims).astype(np.float32),
        }

    def reference(inputs: Feeds) -> Float32Array:
        value, up = inputs["x"].astype(np.float64), inputs["up"].astype(np.float64)
        for _ in range(shape.layers):
            value = value / (1 + np.exp(-value)) * up
        return value.astype(np.float32)

    return OpCase("swiglu", size, variants, feeds, reference)


def _swiglu_graph(path: Path, layers: int, name: str) -> Path:
    graph = GraphBuilder()
    shape = ["rows", "intermediate"]
    value, up = graph.input("x", TensorProto.FLOAT, shape), graph.input("up", TensorProto.FLOAT, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(layers):
        if name == "quick-gelu+mul":
            silu = graph.op("QuickGelu", [value], {"alpha": 1.0}, CONTRIB)
        elif name == "swish+mul":
            silu = graph.op("Swish", [value], {"alpha": 1.0})
        else:
            silu = graph.op("Mul", [value, graph.op("Sigmoid", [value])])
        value = graph.op("Mul", [silu, up])
    graph.output(value, "y")
    return graph.save(path)
