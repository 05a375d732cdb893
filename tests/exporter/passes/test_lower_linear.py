"""Linear layers over weights as they lie on disk, with the CPU kernels and without."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

import q2export
from q2export.contracts import opspec
from q2export.exporter.passes.onnxruntime.lower_linear import LowerLinear
from q2export.runtime.backends import onnxruntime_ops
from tests.helpers.checkpoints import CHECKPOINTS

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_matrices_keep_the_type_they_have_on_disk(tmp_path: Path) -> None:
    made = q2export.export(CHECKPOINTS / "qwen2-tiny", tmp_path / "out", target="onnxruntime", weights="link")
    model = onnx.load(made.onnx, load_external_data=False)
    types = {one.name: one.data_type for one in model.graph.initializer}
    of_16_bits = {name for name, kind in types.items() if kind == onnx.TensorProto.BFLOAT16}
    nodes = [node for node in model.graph.node if node.op_type == opspec.LINEAR.name]
    assert len(nodes) == 7 * 5 + 1 and {node.input[1] for node in nodes} <= of_16_bits
    assert types["model.norm.weight"] == onnx.TensorProto.FLOAT
    assert not [node for node in model.graph.node if node.op_type == "Gemm"]
    ours = {node.op_type for node in model.graph.node if node.domain == opspec.DOMAIN}
    assert ours == {opspec.LINEAR.name, opspec.SWIGLU.name, opspec.ROTARY_ATTENTION.name}
    within = {opspec.ROTARY.name, opspec.ATTENTION.name}  # the body of the second
    assert {function.name for function in model.functions} == ours | within


def test_what_something_else_reads_stays_float32() -> None:
    ir = pytest.importorskip("onnx_ir")
    weight = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3]))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 3]))
    gemm = ir.node("Gemm", [x, weight], {"transB": 1}, name="m/Gemm")
    other = ir.node("Neg", [weight], name="m/Neg")
    graph = ir.Graph([x], [*gemm.outputs, *other.outputs], nodes=[gemm, other], initializers=[weight])
    result = LowerLinear({"w": "bfloat16"})(ir.Model(graph, ir_version=11))
    assert result.matched == 0 and result.refused == ["w: Neg reads it as float32"]
    assert weight.dtype == ir.DataType.FLOAT


def test_without_the_kernels_the_function_bodies_run(
    qwen2_tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = q2export.load(qwen2_tiny_package).score(TOKENS)
    monkeypatch.setattr(onnxruntime_ops, "CPU_LIBRARY", tmp_path / "absent.so")
    with caplog.at_level(logging.WARNING):
        first, second = (q2export.load(qwen2_tiny_package) for _ in range(2))
    np.testing.assert_allclose(first.score(TOKENS), expected, atol=2e-4)
    np.testing.assert_array_equal(first.score(TOKENS), second.score(TOKENS))
    (warning,) = [one.message for one in caplog.records if "without the CPU kernels" in one.message]
    assert "absent.so" in warning


@pytest.mark.parametrize("last", ["bfloat16", "float16"])
def test_experts_of_one_type_stay_as_they_are_and_others_become_float32(last: str) -> None:
    """The kernel takes one type for all experts of a layer."""
    ir = pytest.importorskip("onnx_ir")
    float32 = ir.TensorType(ir.DataType.FLOAT)
    shapes = [[3, 4], [3, 4], [4, 3]] * 2
    weights = [
        ir.Value(name=f"w{index}", type=float32, shape=ir.Shape(shape)) for index, shape in enumerate(shapes)
    ]
    hidden, logits = (
        ir.Value(name=name, type=float32, shape=ir.Shape([1, size])) for name, size in (("h", 4), ("r", 2))
    )
    attributes = {"num_experts": 2, "top_k": 1, "norm_topk_prob": 0}
    moe = ir.node("Q2MoE", [hidden, logits, *weights], attributes, domain="q2export", name="m/Q2MoE")
    graph = ir.Graph([hidden, logits], moe.outputs, nodes=[moe], initializers=weights)
    types = {f"w{index}": "bfloat16" for index in range(5)} | {"w5": last}
    result = LowerLinear(types)(ir.Model(graph, ir_version=11))
    alike = last == "bfloat16"
    assert (result.matched, len(result.refused)) == ((1, 0) if alike else (0, 6))
    assert {weight.dtype.name for weight in weights} == ({"BFLOAT16"} if alike else {"FLOAT"})
