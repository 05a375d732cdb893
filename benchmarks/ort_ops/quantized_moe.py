"""Quantized routed experts: ``com.microsoft.QMoE`` against standard ops with ``MatMulNBits`` per expert.

On CPU, ``QMoE`` takes gate and up with their rows alternating (``swiglu_fusion`` 1) and nothing else, and
ignores ``normalize_routing_weights`` = 0: the softmax over all experts is passed as its ``router_weights``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile
from benchmarks.ort_ops.moe import MoeLayer, MoeShape, reference_layer, split_layer
from benchmarks.ort_ops.quantized_weight import GridWeight, NBits

_ROUNDED = 0.05  # accepted where activations are rounded to 8 bits
_INPUTS_BEFORE_ROUTER_WEIGHTS = 14

_Matrices = dict[str, GridWeight]
"""``gate``, ``up`` ``[experts, intermediate, hidden]`` and ``down`` ``[experts, hidden, intermediate]``."""


def quantized_moe_case(size: str, shape: MoeShape, folder: Path) -> OpCase:
    """The sum of all layers' results for one input, so that rounding cannot change the chosen experts."""
    rng = np.random.default_rng(0)
    routers = [
        rng.standard_normal((shape.experts, shape.hidden), dtype=np.float32) for _ in range(shape.layers)
    ]
    layers: list[_Matrices] = []
    inner, hidden = (shape.experts, shape.intermediate), (shape.experts, shape.hidden)
    for _ in range(shape.layers):
        gate, up = (GridWeight.random(rng, *inner, shape.hidden) for _ in range(2))
        layers.append({"gate": gate, "up": up, "down": GridWeight.random(rng, *hidden, shape.intermediate)})
    file = WeightFile(folder / "weights.bin")
    for index, router in enumerate(routers):
        file.add(f"{index}.router", router / np.float32(shape.hidden**0.5))
    forms = (NBits(4, 32, 4), NBits(4, 32, 0), NBits(8, 32, 4))
    variants = [_fused(file, folder, shape, layers, form) for form in forms]
    variants += [_split(file, folder, shape, layers, form) for form in forms[:1]]

    def feeds(point: Point) -> Feeds:
        return {"x": np.random.default_rng(1).standard_normal((point.tokens, shape.hidden), dtype=np.float32)}

    def reference(inputs: Feeds) -> Float32Array:
        x = inputs["x"].astype(np.float32)
        total = np.zeros_like(x)
        for router, layer in zip(routers, layers, strict=True):
            gate, up, down = (layer[name].values for name in ("gate", "up", "down"))
            plain = MoeLayer(router / np.float32(shape.hidden**0.5), gate, up, down)
            total += reference_layer(x, plain, shape.top_k)
        return total

    return OpCase("quantized-moe", size, tuple(variants), feeds, reference)


def _fused(file: WeightFile, folder: Path, shape: MoeShape, layers: list[_Matrices], form: NBits) -> Variant:
    for index, layer in enumerate(layers):
        fused = {"fc1": GridWeight.interleave(layer["gate"], layer["up"]), "fc2": layer["down"]}
        for name, weight in fused.items():
            file.add(f"{form.name} {index}.{name}.codes", form.codes(weight))
            file.add(f"{form.name} {index}.{name}.scales", form.block_scales(weight))
    graph = GraphBuilder(file)
    x = graph.input("x", TensorProto.FLOAT, ["rows", shape.hidden])
    total = ""
    for index in range(shape.layers):
        routed = _qmoe(graph, x, _router_logits(graph, x, index), index, shape, form)
        total = graph.op("Add", [total, routed]) if total else routed
    graph.output(total, "y")
    path = graph.save(folder / f"qmoe {form.name}.onnx")
    tolerance = _ROUNDED if form.accuracy_level == 4 else None
    return Variant(f"QMoE {form.name}", path, prepack=True, tolerance=tolerance)


def _qmoe(graph: GraphBuilder, x: str, logits: str, index: int, shape: MoeShape, form: NBits) -> str:
    inputs = [x, logits]
    for name in ("fc1", "fc2"):
        inputs += [graph.weight(f"{form.name} {index}.{name}.{part}") for part in ("codes", "scales")]
        inputs.append("")  # no bias
    inputs += [""] * (_INPUTS_BEFORE_ROUTER_WEIGHTS - len(inputs))
    inputs.append(graph.op("Softmax", [logits], {"axis": -1}))
    attributes: dict[str, Any] = {
        "k": shape.top_k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
        "expert_weight_bits": form.bits,
        "block_size": form.block,
        "accuracy_level": form.accuracy_level,
    }
    return graph.op("QMoE", inputs, attributes, CONTRIB)


def _split(file: WeightFile, folder: Path, shape: MoeShape, layers: list[_Matrices], form: NBits) -> Variant:
    for index, layer in enumerate(layers):
        for name, weight in layer.items():
            for expert in range(shape.experts):
                part = GridWeight(weight.codes[expert], weight.scales[expert])
                form.write(file, f"{index}.{expert}.{name}", part)

    def expert_mlp(graph: GraphBuilder, rows: str, prefix: str) -> str:
        up_shape, down_shape = (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)
        gate, up = (form.product(graph, rows, f"{prefix}.{name}", up_shape) for name in ("gate", "up"))
        inner = graph.op("Mul", [graph.op("QuickGelu", [gate], {"alpha": 1.0}, CONTRIB), up])
        return form.product(graph, inner, f"{prefix}.down", down_shape)

    graph = GraphBuilder(file)
    x = graph.input("x", TensorProto.FLOAT, ["rows", shape.hidden])
    total = ""
    for index in range(shape.layers):
        routed = split_layer(graph, x, _router_logits(graph, x, index), index, shape, expert_mlp)
        total = graph.op("Add", [total, routed]) if total else routed
    graph.output(total, "y")
    path = graph.save(folder / f"split {form.name}.onnx")
    return Variant(f"split, {form.name}", path, prepack=True, tolerance=_ROUNDED)


def _router_logits(graph: GraphBuilder, x: str, index: int) -> str:
    return graph.op("Gemm", [x, graph.weight(f"{index}.router")], {"transB": 1})
