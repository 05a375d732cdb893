"""Rows of a quantized embedding: ``com.microsoft.GatherBlockQuantized``, or codes and scales apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from benchmarks.ort_ops.case import Feeds, OpCase, Point, Variant
from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile
from benchmarks.ort_ops.quantized_weight import GridWeight, NBits


@dataclass(frozen=True)
class EmbeddingShape:
    """A table ``[vocab, hidden]``."""

    vocab: int
    hidden: int


def embedding_case(size: str, shape: EmbeddingShape, folder: Path) -> OpCase:
    """The rows of random tokens; the float32 table is the baseline."""
    weight = GridWeight.random(np.random.default_rng(0), shape.vocab, shape.hidden)
    file = WeightFile(folder / "weights.bin")
    file.add("table", weight.values)
    graph = GraphBuilder(file)
    tokens = graph.input("tokens", TensorProto.INT64, ["tokens"])
    graph.output(graph.op("Gather", [graph.weight("table"), tokens]), "y")
    variants = [Variant("float32 Gather", graph.save(folder / "float32.onnx"))]
    for form in (NBits(4, 32, 0), NBits(4, 128, 0), NBits(8, 32, 0)):
        file.add(f"codes {form.name}", form.codes(weight))
        file.add(f"scales {form.name}", form.block_scales(weight))
        name = f"int{form.bits} block {form.block}"
        variants.append(Variant(name, _gather_quantized(file, form, folder / f"{name}.onnx")))
    eight = NBits(8, 32, 0)
    variants.append(Variant("int8 block 32 apart", _gather_apart(file, eight, folder / "apart.onnx")))

    def feeds(point: Point) -> Feeds:
        return {"tokens": np.random.default_rng(1).integers(0, shape.vocab, point.tokens)}

    def reference(inputs: Feeds) -> Float32Array:
        rows: Float32Array = weight.values[inputs["tokens"]]
        return rows

    return OpCase("quantized-embedding", size, tuple(variants), feeds, reference)


def _gather_quantized(file: WeightFile, form: NBits, path: Path) -> Path:
    graph = GraphBuilder(file)
    tokens = graph.input("tokens", TensorProto.INT64, ["tokens"])
    inputs = [graph.weight(f"codes {form.name}"), tokens, graph.weight(f"scales {form.name}")]
    attributes = {"bits": form.bits, "block_size": form.block, "gather_axis": 0, "quantize_axis": 1}
    graph.output(graph.op("GatherBlockQuantized", inputs, attributes, CONTRIB), "y")
    return graph.save(path)


def _gather_apart(file: WeightFile, form: NBits, path: Path) -> Path:
    graph = GraphBuilder(file)
    tokens = graph.input("tokens", TensorProto.INT64, ["tokens"])
    codes, scales = (
        graph.op("Gather", [graph.weight(f"{part} {form.name}"), tokens]) for part in ("codes", "scales")
    )
    zeros = graph.op("Expand", [graph.constant(np.array(128, np.uint8)), graph.op("Shape", [scales])])
    attributes = {"axis": 1, "block_size": form.block}
    graph.output(graph.op("DequantizeLinear", [codes, scales, zeros], attributes), "y")
    return graph.save(path)
