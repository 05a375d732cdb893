"""MatMuls with quantized weights: those of whole decoder layers, and of the head.

``int8 per tensor`` and ``int8 per row`` hold weights of one scale per column, for prefill: activations are
rounded to uint8 with one scale for all rows (``DynamicQuantizeMatMul``), or with one per row. No operator
does the latter; it is ``QuantizeLinear`` along the rows, ``MatMulIntegerToFloat`` with an activation scale of
1, and ``Mul`` by the row scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile
from benchmarks.ort_ops.quantized_weight import GridWeight, NBits

_ROUNDED = 0.05  # accepted where activations are rounded to 8 bits

MatMul = Callable[[GraphBuilder, str, str, tuple[int, int]], str]
"""Appends ``x @ weight.T``, given the names of both and the weight's shape; returns the result's name."""


@dataclass(frozen=True)
class MatMulsShape:
    """``layers`` decoder layers, products with query, key and value, output, gate, up and down weights."""

    hidden: int
    intermediate: int
    kv: int
    layers: int


@dataclass(frozen=True)
class QuantizedHeadShape:
    """The language-model head, hidden -> vocab."""

    hidden: int
    vocab: int


@dataclass(frozen=True)
class _MatMuls:
    """Weights by name of all layers, written to one file in every form that a variant asks for."""

    shape: MatMulsShape
    file: WeightFile
    weights: dict[str, GridWeight] = field(default_factory=dict)

    def groups(self, layer: int, joined: bool) -> list[tuple[str, list[str]]]:
        """Per product its input, ``x`` or ``z``, and the weights it joins."""
        parts = [("x", ["q", "k", "v"]), ("x", ["o"]), ("x", ["gate", "up"]), ("z", ["down"])]
        if not joined:
            parts = [(source, [name]) for source, names in parts for name in names]
        return [(source, [f"{layer}.{name}" for name in names]) for source, names in parts]

    def joined(self, names: list[str]) -> GridWeight:
        """One matrix of the named ones."""
        return GridWeight.concatenate([self.weights[name] for name in names])


def matmuls_case(size: str, shape: MatMulsShape, folder: Path) -> OpCase:
    """All products of the layers; ``y`` is the results of the last layer, side by side."""
    rng = np.random.default_rng(0)
    products = _MatMuls(shape, WeightFile(folder / "weights.bin"))
    hidden, inner = shape.hidden, shape.intermediate
    rows = {
        "q": hidden,
        "k": shape.kv,
        "v": shape.kv,
        "o": hidden,
        "gate": inner,
        "up": inner,
        "down": hidden,
    }
    for layer in range(shape.layers):
        for name, count in rows.items():
            weight = GridWeight.random(rng, count, inner if name == "down" else hidden)
            products.weights[f"{layer}.{name}"] = weight
    base = NBits(4, 32, 4)
    forms = [base, NBits(4, 32, 4, zero_points=True), NBits(4, 64, 4), NBits(4, 128, 4), NBits(4, 32, 0)]
    forms += [NBits(4, 32, 1), NBits(8, 32, 4), NBits(8, 128, 4)]
    variants = [_float32(products, folder)]
    variants += [_nbits(products, form, folder) for form in forms]
    variants += [_nbits(products, base, folder, joined=False), _nbits(products, base, folder, bias=True)]
    variants += [_int8(products, folder, per_row=False), _int8(products, folder, per_row=True)]

    def reference(feeds: Feeds) -> Float32Array:
        inputs = {name: feeds[name].astype(np.float32) for name in ("x", "z")}
        last = products.groups(shape.layers - 1, joined=True)
        return np.concatenate([inputs[x] @ products.joined(names).values.T for x, names in last], axis=1)

    def feeds(point: Point) -> Feeds:
        draw = np.random.default_rng(2)
        return {
            "x": draw.standard_normal((point.tokens, shape.hidden), dtype=np.float32),
            "z": draw.standard_normal((point.tokens, shape.intermediate), dtype=np.float32),
        }

    return OpCase("quantized-products", size, tuple(variants), feeds, reference)


def quantized_head_case(size: str, shape: QuantizedHeadShape, folder: Path) -> OpCase:
    """The head at as many rows as logits are asked for."""
    weight = GridWeight.random(np.random.default_rng(1), shape.vocab, shape.hidden)
    file = WeightFile(folder / "weights.bin")
    variants = []
    for form in (NBits(4, 32, 4), NBits(4, 64, 4), NBits(4, 128, 4), NBits(8, 32, 4), NBits(8, 128, 4)):
        form.write(file, "head", weight)
        graph = GraphBuilder(file)
        x = graph.input("x", TensorProto.FLOAT, ["rows", "hidden"])
        graph.output(form.product(graph, x, "head", (shape.vocab, shape.hidden)), "y")
        path = graph.save(folder / f"{form.name}.onnx")
        variants.append(Variant(form.name, path, prepack=True, tolerance=_ROUNDED))

    def feeds(point: Point) -> Feeds:
        draw = np.random.default_rng(2)
        return {"x": draw.standard_normal((point.tokens, shape.hidden), dtype=np.float32)}

    def reference(inputs: Feeds) -> Float32Array:
        logits: Float32Array = inputs["x"].astype(np.float32) @ weight.values.T
        return logits

    return OpCase("quantized-head", size, tuple(variants), feeds, reference)


def _float32(products: _MatMuls, folder: Path) -> Variant:
    file = WeightFile(folder / "float32.bin")
    for layer in range(products.shape.layers):
        for _, names in products.groups(layer, joined=True):
            file.add("+".join(names), products.joined(names).values)

    def product(graph: GraphBuilder, x: str, name: str, shape: tuple[int, int]) -> str:
        return graph.op("Gemm", [x, graph.weight(name)], {"transB": 1})

    path = _model(products, file, folder / "float32.onnx", product)
    return Variant("float32 Gemm", path, prepack=True)


def _nbits(products: _MatMuls, form: NBits, folder: Path, joined: bool = True, bias: bool = False) -> Variant:
    """``bias``: the query, key and value product adds one in the op."""
    for layer in range(products.shape.layers):
        for _, names in products.groups(layer, joined):
            form.write(products.file, "+".join(names), products.joined(names))

    def product(graph: GraphBuilder, x: str, name: str, shape: tuple[int, int]) -> str:
        added = graph.constant(np.zeros(shape[0], np.float32)) if bias and ".q" in name else None
        return form.product(graph, x, name, shape, added)

    name = form.name + ("" if joined else " separate") + (" bias" if bias else "")
    path = _model(products, products.file, folder / f"{name}.onnx", product, joined)
    tolerance = _ROUNDED if form.accuracy_level == 4 else None
    return Variant(name, path, prepack=True, tolerance=tolerance)


def _int8(products: _MatMuls, folder: Path, per_row: bool) -> Variant:
    name = "int8 per row" if per_row else "int8 per tensor"
    file = WeightFile(folder / f"{name}.bin")
    for layer in range(products.shape.layers):
        for _, names in products.groups(layer, joined=True):
            weight = products.joined(names)
            file.add("+".join(names), weight.codes.T)
            file.add("+".join(names) + ".scales", weight.scales)

    def product(graph: GraphBuilder, x: str, weight: str, shape: tuple[int, int]) -> str:
        operand, scales = graph.weight(weight), graph.weight(f"{weight}.scales")
        if not per_row:
            return graph.op("DynamicQuantizeMatMul", [x, operand, scales], domain=CONTRIB)
        return _per_row_matmul(graph, x, operand, scales)

    path = _model(products, file, folder / f"{name}.onnx", product)
    return Variant(name, path, prepack=True, tolerance=_ROUNDED)


def _per_row_matmul(graph: GraphBuilder, x: str, operand: str, scales: str) -> str:
    """Rows of x as uint8 around 128, each scaled by its own largest absolute value."""
    largest = graph.op("ReduceMax", [graph.op("Abs", [x]), graph.ints([-1])], {"keepdims": 1})
    row_scales = graph.op("Mul", [largest, graph.constant(np.array(1 / 127, np.float32))])
    flat = graph.op("Reshape", [row_scales, graph.ints([-1])])
    zero = graph.constant(np.array(128, np.uint8))
    zeros = graph.op("Expand", [zero, graph.op("Shape", [flat])])
    codes = graph.op("QuantizeLinear", [x, flat, zeros], {"axis": 0})
    one = graph.constant(np.array(1, np.float32))
    product = graph.op("MatMulIntegerToFloat", [codes, operand, one, scales, zero], domain=CONTRIB)
    return graph.op("Mul", [product, row_scales])


def _model(products: _MatMuls, file: WeightFile, path: Path, product: MatMul, joined: bool = True) -> Path:
    graph = GraphBuilder(file)
    for name in ("x", "z"):
        graph.input(name, TensorProto.FLOAT, ["rows", f"{name}_width"])
    results: list[str] = []
    for layer in range(products.shape.layers):
        results = []
        for source, names in products.groups(layer, joined):
            rows, columns = products.joined(names).codes.shape
            results.append(product(graph, source, "+".join(names), (rows, columns)))
    graph.output(graph.op("Concat", results, {"axis": 1}), "y")
    return graph.save(path)
