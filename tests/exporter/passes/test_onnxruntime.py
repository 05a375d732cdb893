"""Passes that make a decoding step of a quantized model shorter: what they match, refuse, and compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from q2export.contracts.quantization import Quantization
from q2export.exporter.checkpoint.source import load_source
from q2export.exporter.export import Graph, build_graph
from q2export.exporter.passes.onnxruntime.fuse_skip_norm import FuseSkipNorm
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.weights.attach import attach, places_of
from q2export.exporter.weights.convert import write_converted
from tests.exporter.quantization.models import MOE, blocks_config
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.onnx_graphs import Array, check_same, normal, op_types, parse, run

CAPACITY = 24
MODELS: dict[str, tuple[dict[str, object], Quantization]] = {
    "int4": ({}, Quantization("int4")),
    "int8-asymmetric": ({}, Quantization("int8", symmetric=False)),
    "moe": (MOE, Quantization("int4")),
    "window": (
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        Quantization("int4"),
    ),
}


def quantized(folder: Path, config: dict[str, object], quantization: Quantization) -> Path:
    checkpoint = write_checkpoint(folder / "checkpoint", blocks_config(**config))
    quantize_checkpoint(load_source(checkpoint), folder / "quantized", quantization)
    return folder / "quantized"


def graph_of(folder: Path, target: str) -> Graph:
    source = load_source(folder)
    return build_graph(source, target, "float32")  # type: ignore[arg-type]


def logits(folder: Path, graph: Graph, steps: list[int]) -> Array:
    """Logits of all tokens, fed in steps of the given lengths to a cache of two rows."""
    converted = folder / "converted.safetensors"
    with converted.open("wb") as sink:
        write_converted(graph.plan, sink, scan=True)
    places = places_of(graph.plan, {file: file.name for file in graph.plan.shards}, converted.name)
    attach(graph.model, graph.plan, places)
    path = folder / "model.onnx"
    ir.save(graph.model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    caches = [name for name in inputs if name.startswith("past_") and "." in name]
    state = {
        name: np.zeros((1, inputs[name].shape[1], CAPACITY, inputs[name].shape[3]), np.float32)
        for name in caches
    }
    tokens = np.random.default_rng(5).integers(0, 100, (1, sum(steps)))
    found, past = [], 0
    for count in steps:
        feed = {
            "input_ids": tokens[:, past : past + count],
            "past_lengths": np.array([past]),
            "query_lengths": np.array([count]),
            "logits_indices": np.arange(count)[None],
        }
        outputs = dict(
            zip([o.name for o in session.get_outputs()], session.run(None, feed | state), strict=True)
        )
        found.append(outputs["logits"])
        state = {name: outputs[name.replace("past", "present")] for name in caches}
        past += count
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_the_lowered_graph_computes_what_the_portable_one_does(name: str, tmp_path: Path) -> None:
    folder = quantized(tmp_path, *MODELS[name])
    lowered, portable = graph_of(folder, "onnxruntime"), graph_of(folder, "portable")
    layers = load_source(folder).config.num_hidden_layers
    counts = {pass_name: matched for pass_name, matched, _ in lowered.passes}
    assert counts["FuseSkipNorm"] == 2 * layers - 1  # the last sum is gathered from before it is normalized
    ops = Counter(op_types(lowered.model))
    assert ops["SkipSimplifiedLayerNormalization"] == 2 * layers - 1
    assert ops["Q2RotaryAttention"] == layers
    assert ops["Gemm"] == 0
    ours = {node.op_type for node in lowered.model.graph if node.domain == "q2export"}
    assert {identifier[1] for identifier in lowered.model.functions} >= ours
    steps = [7, 1, 1, 5]
    expected = logits(folder, portable, steps)
    assert np.abs(expected).max() > 1
    assert np.abs(logits(folder, lowered, steps) - expected).max() < 2e-4


NORMS = """g (float[T,8] x, float[T,8] y, float[1,8] row)
    => (float[T,8] sum, float[T,8] out, float[T,8] other)
    <float[8] gamma = {1, 2, 3, 4, 5, 6, 7, 8}> {
    ["a/Add"] sum = Add(x, y)
    ["a/RMSNormalization"] normal = RMSNormalization <axis = AXIS, epsilon = 1e-5> (sum, gamma)
    ["b/Add"] again = Add(OPERANDS)
    ["b/RMSNormalization"] out = RMSNormalization <axis = -1, epsilon = 1e-5> (again, gamma)
    ["c/RMSNormalization"] other = RMSNormalization <axis = -1, epsilon = 1e-5> (x, gamma) }"""


def test_a_sum_and_its_norm_become_one_op_and_the_sum_stays() -> None:
    text = NORMS.replace("AXIS", "-1").replace("OPERANDS", "normal, sum")
    model = parse(text)
    result = FuseSkipNorm()(model)
    assert (result.matched, result.refused) == (2, [])
    assert op_types(model) == ["SkipSimplifiedLayerNormalization"] * 2 + ["RMSNormalization"]
    feed = {"x": normal(3, 8, seed=1), "y": normal(3, 8, seed=2), "row": normal(1, 8)}
    check_same(run(parse(text), feed), run(model, feed), 1e-5)


@pytest.mark.parametrize(
    ("axis", "operands", "reason"),
    [
        ("-2", "normal, sum", "a/RMSNormalization: it normalizes more than the last axis"),
        ("-1", "row, sum", "b/RMSNormalization: the shapes of the two terms are not known to be the same"),
    ],
    ids=["axis", "broadcast"],
)
def test_a_norm_that_the_op_does_not_compute_stays(axis: str, operands: str, reason: str) -> None:
    model = parse(NORMS.replace("AXIS", axis).replace("OPERANDS", operands))
    result = FuseSkipNorm()(model)
    assert (result.matched, result.refused) == (1, [reason])
