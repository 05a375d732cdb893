"""Graphs of quantized checkpoints: right numbers on every target, and weights read where they lie, once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from q2export.contracts.quantization import Quantization
from q2export.errors import ExportError
from q2export.exporter.checkpoint.source import Source
from q2export.exporter.export import Graph, build_graph
from q2export.exporter.lowering.limits import check_quantized
from q2export.exporter.weights.plan import as_it_is
from q2export.exporter.weights.sizes import planned_bytes
from q2export.exporter.weights.stack import Form
from q2export.plugins.tensorrt.preflight import check_onnx
from q2export.runtime.backends.onnxruntime import step_inputs
from tests.helpers.quantized import TOKENS, export, reference, run_export, write_packed

# float32 arithmetic on both sides; logits reach 7
MAX_ERROR = 2e-5
SCHEMES = {
    "int4": Quantization(weights="int4"),
    "int4-asymmetric-64": Quantization(weights="int4", block_size=64, symmetric=False),
    "int8": Quantization(weights="int8"),
    "int8-asymmetric": Quantization(weights="int8", symmetric=False),
}
CASES = [
    ("dense", "int4"),
    ("dense", "int4-asymmetric-64"),
    ("dense", "int8-asymmetric"),
    ("dense-tied", "int4-asymmetric-64"),
    ("dense-tied", "int8"),
    ("moe", "int4"),
    ("moe", "int8-asymmetric"),
    ("moe-norm-tied", "int4-asymmetric-64"),
]
KEPT = {
    "experts": ("*.experts.1.*", "model.layers.1.mlp.experts.2.up_proj.weight"),
    "embedding": ("model.embed_tokens.weight", "*.o_proj.weight"),
}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    model, scheme = request.param
    return write_packed(tmp_path_factory.mktemp(f"{model}-{scheme}"), model, SCHEMES[scheme])


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_the_graph_equals_pytorch_over_dequantized_weights(case: Source, tmp_path: Path, target: str) -> None:
    logits = run_export(export(case, tmp_path / "out", target))
    expected = reference(case)
    assert np.abs(expected).max() > 3
    assert np.abs(logits - expected).max() <= MAX_ERROR


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_weights_kept_in_high_precision(tmp_path: Path, keep: str, target: str) -> None:
    source = write_packed(tmp_path, "moe", Quantization(weights="int4", keep=KEPT[keep]))
    result = export(source, tmp_path / "out", target)
    assert np.abs(run_export(result) - reference(source)).max() <= MAX_ERROR
    operators = Counter(node.op_type for node in onnx.load(result.onnx, load_external_data=False).graph.node)
    if target == "onnxruntime":
        assert operators["Q2QuantizedMoE"] == (0 if keep == "experts" else 2)
        assert operators["Q2QuantizedGather"] == (0 if keep == "embedding" else 1)
    quantization = result.manifest.quantization
    assert quantization is not None and quantization.kept_weights == {"experts": 7, "embedding": 3}[keep]


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("model", ["dense", "dense-tied"])
def test_the_tensorrt_graph_in_float16(tmp_path: Path, model: str, weights: str) -> None:
    """Signed codes and float16 scales; the same file without TensorRT, through the function bodies."""
    source = write_packed(tmp_path, model, Quantization(weights=weights), dtype="F16")
    result = export(source, tmp_path / "out", "tensorrt", dtype="float16")
    assert np.abs(run_export(result) - reference(source)).max() <= 0.03
    nodes = onnx.load(result.onnx, load_external_data=False).graph.node
    dequantized = [node for node in nodes if node.op_type == "DequantizeLinear"]
    assert len(dequantized) == 15 and all(len(node.input) == 2 for node in dequantized), "no zero points"


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_quantized_experts_are_plugins_of_tensorrt_over_the_bytes_on_disk(
    tmp_path: Path, weights: str
) -> None:
    source = write_packed(tmp_path, "moe", Quantization(weights=weights), dtype="F16")
    result = export(source, tmp_path / "out", "tensorrt", dtype="float16")
    assert np.abs(run_export(result) - reference(source)).max() <= 0.03
    nodes = onnx.load(result.onnx, load_external_data=False).graph.node
    assert [len(node.input) for node in nodes if node.op_type == "Q2QuantizedMoE"] == [6, 6]
    assert check_onnx(result.onnx) == 4
    for dtype in ("float16", "bfloat16"):
        graph = build_graph(source, "tensorrt", dtype)
        experts = [one for one in graph.plan.bindings if any(".experts." in ref.name for ref in one.sources)]
        assert {one.in_place for one in experts} == {True} and len(experts) == 8
        of_graph = {value.name: value.dtype for value in graph.model.graph.initializers.values()}
        assert {of_graph[one.name] for one in experts} == {ir.DataType.INT32, ir.DataType.FLOAT16}
        planned = planned_bytes(as_it_is(source), "tensorrt", dtype)
        assert planned.total == sum(one.nbytes for one in graph.plan.bindings)


def test_a_mixture_of_quantized_and_other_experts_is_refused_for_tensorrt(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "moe", Quantization(weights="int4", keep=KEPT["experts"]))
    with pytest.raises(ExportError, match=r"of the 18 matrices .* our kernels for TensorRT take all"):
        check_quantized("tensorrt", tuple(source.packed.values()), source.config)
    whole = write_packed(tmp_path / "whole", "moe", Quantization(weights="int4", keep=("*.0.mlp.experts.*",)))
    check_quantized("tensorrt", tuple(whole.packed.values()), whole.config)


def test_the_portable_graph_in_the_reference_evaluator(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "dense-tied", SCHEMES["int4-asymmetric-64"])
    result = export(source, tmp_path / "out", "portable", weights="copy")
    model = onnx.load(result.onnx)
    onnx.checker.check_model(model, full_check=True)
    tokens = TOKENS[:4]
    feed = step_inputs(result.manifest.engine, tokens, np.arange(len(tokens), dtype=np.int64))
    (logits,) = ReferenceEvaluator(model).run(["logits"], feed)
    assert np.abs(logits[0] - reference(source, tokens)).max() <= MAX_ERROR


def graph_of(source: Source, target: str) -> Graph:
    dtype = "float16" if target == "tensorrt" else "float32"
    return build_graph(source, target, dtype)  # type: ignore[arg-type]


def test_all_quantized_weights_are_read_in_place_and_all_bytes_are_planned(case: Source) -> None:
    for target in ("onnxruntime", "portable"):
        plan = graph_of(case, target).plan
        held = {weight.tensor for weight in case.packed.values()}
        held |= {weight.scale_name for weight in case.packed.values()}
        anew = [binding for binding in plan.converted if {ref.name for ref in binding.sources} & held]
        assert anew == [], "codes and scales are not written a second time"
        for binding in plan.in_place:
            for one, other in zip(binding.sources, binding.sources[1:], strict=False):
                assert one.offset + one.nbytes == other.offset
            assert sum(ref.nbytes for ref in binding.sources) == binding.nbytes
        planned = planned_bytes(as_it_is(case), target, "float32")
        assert (planned.in_place, planned.converted) == (plan.in_place_bytes, plan.converted_bytes)
        read = {ref.name for binding in plan.bindings for ref in binding.sources}
        assert read == set(case.tensor_names)


def test_planned_bytes_of_a_tensorrt_graph(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "dense-tied", SCHEMES["int4"])
    plan = graph_of(source, "tensorrt").plan
    planned = planned_bytes(as_it_is(source), "tensorrt", "float16")
    assert (planned.in_place, planned.converted) == (plan.in_place_bytes, plan.converted_bytes)
    signed = [binding for binding in plan.converted if binding.form is Form.SIGNED_CODES]
    assert len(signed) == len(source.packed)


def test_the_package_holds_the_codes_once(case: Source, tmp_path: Path) -> None:
    result = export(case, tmp_path / "out", "onnxruntime", weights="link")
    weights = case.folder / "model.safetensors"
    assert os.path.samefile(result.package / "weights" / "model.safetensors", weights)
    converted = result.manifest.weights.converted_bytes
    plain = [case.checkpoint.tensors[name] for name in case.tensor_names]
    vectors = [ref for ref in plain if ref.dtype == "BF16" and len(ref.shape) == 1]
    assert converted == 2 * sum(ref.nbytes for ref in vectors), "matrices are read in place"
    located = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(result.onnx, load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    inside = [entry for entry in located if entry["location"] == "weights/model.safetensors"]
    spans = {(int(entry["offset"]), int(entry["length"])) for entry in inside}
    read = sum(length for _, length in spans)
    packed = sum(weight.nbytes for weight in case.packed.values())
    matrices = sum(ref.nbytes for ref in plain if ref.dtype == "BF16" and len(ref.shape) == 2)
    assert read == packed + matrices == result.manifest.weights.in_place_bytes
