"""The lowering for ONNX Runtime on CUDA: every node has a CUDA kernel, and nothing hinders a CUDA graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from q2export.contracts import opspec
from q2export.contracts.quantization import Quantization
from q2export.exporter.export import Graph, build_graph, load_source
from q2export.exporter.quantization.folder import quantize_checkpoint
from tests.exporter.lowering.cuda_kernels import CUDA_KERNELS
from tests.helpers.checkpoints import CHECKPOINTS

OURS = {spec.name for spec in (opspec.ROTARY_ATTENTION, opspec.ATTENTION, opspec.MOE)}


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "int4"
    source = load_source(CHECKPOINTS / "qwen2-tiny")
    quantize_checkpoint(source, folder, Quantization(weights="int4"), threads=1)
    return folder


def lowered(folder: Path, dtype: str) -> Graph:
    return build_graph(load_source(folder), "onnxruntime-cuda", dtype)


def check_kernels(model: ir.Model) -> None:
    for node in model.graph:
        if node.domain == opspec.DOMAIN:
            assert node.op_type in OURS, node.name
            continue
        types = CUDA_KERNELS[node.domain, node.op_type]
        for index, value in enumerate(node.inputs):
            if value is not None:
                assert value.dtype is not None, f"{node.name}: the type of input {index} is not known"
                assert value.dtype.name in types[min(index, len(types) - 1)], node.name


def check_shapes(model: ir.Model) -> None:
    """What comes from ``Shape`` is put together and given to ``Reshape``, which reads it on the CPU."""
    from_shapes = {output for node in model.graph if node.op_type == "Shape" for output in node.outputs}
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value in from_shapes:
                assert node.op_type == "Concat" or (node.op_type, index) == ("Reshape", 1), node.name
                from_shapes.update(node.outputs if node.op_type == "Concat" else ())


@pytest.mark.parametrize(("name", "dtype"), [("qwen2-tiny", "bfloat16"), ("qwen2-moe-tiny", "float16")])
def test_every_node_has_a_cuda_kernel(name: str, dtype: str) -> None:
    graph = lowered(CHECKPOINTS / name, dtype)
    check_kernels(graph.model)
    check_shapes(graph.model)
    assert not graph.plan.converted or dtype == "float16"
    matched = {name: count for name, count, _ in graph.passes}
    config = load_source(CHECKPOINTS / name).config
    assert matched["SelectLogits"] == 1
    assert matched["SplitBias"] == 3 * config.num_hidden_layers
    assert all(len(node.inputs) == 2 for node in graph.model.graph if node.op_type == "Gemm")


def test_quantized_weights_are_read_in_place(int4: Path) -> None:
    graph = lowered(int4, "bfloat16")
    check_kernels(graph.model)
    check_shapes(graph.model)
    ops = {node.op_type for node in graph.model.graph}
    assert {"MatMulNBits", "GatherBlockQuantized"} <= ops and "Gemm" not in ops
    converted = {binding.name.rpartition("/")[2] for binding in graph.plan.converted}
    assert converted <= {"scale"}
