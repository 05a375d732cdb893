"""The TensorRT lowering: types, casts, plugin nodes, names, and where each weight comes from."""

from __future__ import annotations

import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from q2export.contracts import opspec
from q2export.errors import CheckpointError, ExportError
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.export import Graph, Source, build_graph, load_source, target_dtype
from q2export.exporter.passes.accumulate_in_float32 import AccumulateInFloat32
from q2export.exporter.passes.base import input_of, nodes_of
from q2export.exporter.weights.bind import plan_binding
from q2export.exporter.weights.convert import write_converted
from tests.helpers.checkpoints import split_file, tiny_config, write_checkpoint

DENSE = tiny_config(head_dim=16, tie_word_embeddings=True)
MOE = tiny_config(model_type="qwen2_moe", head_dim=16)
ONNX_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Case:
    """One small checkpoint in bfloat16, and its graph in both types: each is traced once."""

    source: Source
    graphs: dict[str, Graph]


@pytest.fixture(scope="module", params=["dense", "moe"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = DENSE if request.param == "dense" else MOE
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / request.param, config, dtype="BF16")
    source = load_source(folder)
    return Case(source, {dtype: build_graph(source, "tensorrt", dtype) for dtype in ONNX_TYPES})


@pytest.fixture(scope="module", params=list(ONNX_TYPES))
def lowered(request: pytest.FixtureRequest, case: Case) -> tuple[str, Graph]:
    return request.param, case.graphs[request.param]


def test_the_graph_is_in_one_type_with_float32_logits(lowered: tuple[str, Graph]) -> None:
    dtype, graph = lowered
    onnx_type = ONNX_TYPES[dtype]
    for value in [*graph.model.graph.inputs, *graph.model.graph.outputs]:
        kind = str(value.name).partition(".")[0]
        if kind in ("past_key", "past_value", "present_key", "present_value"):
            assert value.dtype == onnx_type
        else:
            assert value.dtype == (ir.DataType.FLOAT if kind == "logits" else ir.DataType.INT64)
    weights = [value for value in graph.model.graph.initializers.values() if value.const_value is None]
    assert {value.dtype for value in weights} == {onnx_type}
    norms = nodes_of(graph.model.graph, "RMSNormalization")
    assert norms and all(node.attributes["stash_type"].as_int() == 1 for node in norms)


def test_plugin_nodes_carry_attributes_and_function_bodies(lowered: tuple[str, Graph]) -> None:
    graph = lowered[1].model.graph
    nodes = [node for node in graph if node.domain == opspec.DOMAIN]
    layers = 2
    expected = {opspec.ROTARY_ATTENTION.name: layers}
    if nodes_of(graph, opspec.MOE.name, opspec.DOMAIN):
        expected[opspec.MOE.name] = layers
    assert Counter(node.op_type for node in nodes) == expected
    for node in nodes:
        names = {*opspec.BY_NAME[node.op_type].attribute_names(), "plugin_version", "plugin_namespace"}
        assert set(node.attributes) == names
    assert {name for _, name, _ in lowered[1].model.functions} >= set(expected)


def test_weights_keep_their_layout_and_exist_once(lowered: tuple[str, Graph], case: Case) -> None:
    graph = lowered[1].model.graph
    packed = {name: ref.shape for name, ref in case.source.checkpoint.tensors.items()}
    bound = {binding.name: binding.source.shape for binding in lowered[1].plan.bindings}
    assert bound == packed
    for gemm in nodes_of(graph, "Gemm"):
        assert gemm.attributes["transB"].as_int() == 1


def test_float16_products_are_summed_in_float32(lowered: tuple[str, Graph]) -> None:
    dtype, lowered_graph = lowered
    graph = lowered_graph.model.graph
    gemms = nodes_of(graph, "Gemm")
    matched = {name: count for name, count, _ in lowered_graph.passes}["AccumulateInFloat32"]
    if dtype == "bfloat16":
        assert matched == 0
        return
    assert matched == len(gemms) > 8
    for gemm in gemms:
        assert len(gemm.inputs) == 2, "a bias inside the matmul would keep TensorRT from fusing"
        for index in (0, 1):
            cast = input_of(gemm, index).producer()
            assert cast is not None and cast.op_type == "Cast"
            assert list(cast.outputs[0].consumers()) == [gemm], (
                "a shared cast would keep TensorRT from fusing"
            )
        (after,) = gemm.outputs[0].consumers()
        assert after.op_type == "Cast" and after.outputs[0].dtype == ir.DataType.FLOAT16


def test_values_keep_the_names_of_their_modules(case: Case) -> None:
    names = [
        {value.name for node in graph.model.graph for value in node.outputs} for graph in case.graphs.values()
    ]
    modules = [{name for name in found if name and "/" not in name} for found in names]
    assert modules[0] == modules[1]
    assert {"model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.attention", "lm_head"} <= modules[0]


GEMM = """<ir_version: 11, opset_import: ["" : 23]>
agraph (float16[N, 7] x, float16[5, 7] w, float16[5] b) => (float16[N, 5] y)
{ [matmul] y = Gemm <transB = 1> (x, w, b) }
"""


def test_numbers_are_those_of_float32_rounded_once_before_the_bias() -> None:
    model = ir.from_proto(onnx.parser.parse_model(GEMM))
    result = AccumulateInFloat32()(model)
    assert (result.matched, [node.op_type for node in model.graph]) == (
        1,
        ["Cast", "Cast", "Gemm", "Cast", "Add"],
    )
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((3, 7), (5, 7), (5,)))
    x[0], w[0] = 200, 400  # sums to 560,000: beyond float16 unless it stays narrow only at the end
    x[1, 1:], w[1, 1:] = 0, 0
    x[2], w[2] = [2048, 1, 1, 1, 1, 1, 1], 1  # 2054: a float16 sum would stay at 2048
    with np.errstate(over="ignore"):
        (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x, "w": w, "b": b})
        expected = (x.astype(np.float32) @ w.astype(np.float32).T).astype(np.float16) + b
    assert y[2, 2] == np.float16(2054) + b[2]
    np.testing.assert_array_equal(y, expected)


def test_a_float16_product_it_does_not_know_is_refused() -> None:
    text = GEMM.replace("Gemm <transB = 1> (x, w, b)", "MatMul (x, v)").replace(
        "w, float16[5] b", "w, float16[7, 5] v"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(ExportError, match="matmul: a float16 matmul whose sums"):
        AccumulateInFloat32()(model)


@pytest.mark.parametrize(
    ("packed", "asked", "expected"),
    [
        ("BF16", None, "bfloat16"),
        ("F16", None, "float16"),
        ("F32", None, "float16"),
        ("F32", "bfloat16", "bfloat16"),
        ("BF16", "float16", "float16"),
    ],
)
def test_dtype_follows_the_checkpoint(tmp_path: Path, packed: str, asked: str | None, expected: str) -> None:
    source = load_source(write_checkpoint(tmp_path / "model", DENSE, dtype=packed))
    assert target_dtype(source.dtype, "tensorrt", asked) == expected


def test_same_type_stays_in_place_and_another_is_converted(lowered: tuple[str, Graph]) -> None:
    dtype, graph = lowered
    if dtype == "bfloat16":
        assert graph.plan.converted == () and graph.plan.in_place_bytes > 0
    else:
        assert graph.plan.in_place == () and graph.plan.converted_bytes > 0


class Sink:
    def write(self, data: bytes | bytearray | memoryview) -> int:
        return len(data)


def test_a_value_beyond_float16_is_refused_with_its_place(case: Case, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(case.source.folder, model)
    path = model / "model.safetensors"
    header, data = split_file(path)
    begin = header["model.layers.1.self_attn.o_proj.weight"]["data_offsets"][0]  # type: ignore[index]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - len(data) + begin + 2 * (14 * 16 + 3))
        file.write(struct.pack("<f", 98304.0)[2:])  # as bfloat16
    source = load_source(model)
    graph = case.graphs["float16"].model
    plan = plan_binding(graph, source.checkpoint, expected_parameters(source.config))
    place = r"model\.layers\.1\.self_attn\.o_proj\.weight'?\[1, 3\]: 98304\.0 is beyond"
    with pytest.raises(CheckpointError, match=place):
        write_converted(plan, Sink(), scan=True)
