"""``inspect`` on ONNX files made here, on a built package and on checkpoints."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import q2export
from q2export.cli.main import main
from q2export.contracts.memory import CacheShape, memory_table
from q2export.errors import Q2ExportError
from q2export.inspect.inspection import inspect
from q2export.inspect.onnx import FunctionInfo, OpCount, TensorInfo, WeightLocation, summarise_onnx
from tests.helpers.checkpoints import PUBLISHED


def external(name: str, dims: list[int], offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w/model.safetensors"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write_model(path: Path) -> Path:
    """Two custom ops and one standard one; a tied weight, an inline one and a four-bit one."""
    nodes = [
        helper.make_node("Q2Double", ["x"], ["a"], domain="q2export"),
        helper.make_node("Q2Double", ["a"], ["b"], domain="q2export"),
        helper.make_node("Add", ["b", "scale"], ["y"]),
    ]
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    function = helper.make_function("q2export", "Q2Double", ["x"], ["y"], body, [helper.make_opsetid("", 23)])
    cache = ["batch", 2, "capacity", 64]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, 3]),
        helper.make_tensor_value_info("past_key.0", TensorProto.FLOAT16, cache),
        helper.make_tensor_value_info("past_key.1", TensorProto.FLOAT16, cache),
    ]
    weights = [
        external("embed", [10, 4], 256, 80),
        external("head", [10, 4], 256, 80),
        external("other", [6], 336, 12),
        helper.make_tensor("scale", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        TensorProto(name="int4", data_type=TensorProto.INT4, dims=[5], raw_data=b"\x21\x43\x05"),
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7])], weights
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("q2export", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=11), path)
    return path


def test_onnx_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    found = summarise_onnx(path)
    assert found.file_bytes == path.stat().st_size
    assert (found.ir_version, found.opsets) == (11, (("ai.onnx", 23), ("q2export", 1)))
    assert found.ops == (OpCount("q2export", "Q2Double", 2), OpCount("", "Add", 1))
    assert found.functions == (FunctionInfo("q2export", "Q2Double", 1),)
    assert found.inputs[0] == TensorInfo("x", "float32", ("batch", "?", "3"))
    assert found.outputs == (TensorInfo("y", "float32", ("7",)),)
    assert found.weights == (
        WeightLocation("w/model.safetensors", 3, 10 * 4 * 2 + 6 * 2),
        WeightLocation(None, 2, 3 * 4 + 3),
    )
    assert found.weight_bytes == 107


def test_memory_is_weights_and_cache() -> None:
    cache = CacheShape(num_hidden_layers=3, num_key_value_heads=2, head_dim=64, dtype="bfloat16")
    assert cache.bytes_per_token == 2 * 3 * 2 * 64 * 2
    table = memory_table(cache, 1000, max_batch=6, max_context=5000)
    assert [(need.batch, need.context) for need in table] == [
        (batch, context) for batch in (1, 2, 4, 6) for context in (1024, 4096, 5000)
    ]
    assert table[-1].kv_cache_bytes == 6 * 5000 * 1536
    assert table[-1].total_bytes == 6 * 5000 * 1536 + 1000


def test_the_cache_of_an_onnx_file_is_found_in_its_inputs(tmp_path: Path) -> None:
    memory = inspect(write_model(tmp_path / "model.onnx")).memory
    assert memory is not None
    assert (memory.kv_dtype, memory.kv_cache_bytes_per_token) == ("float16", 2 * 2 * 2 * 64 * 2)
    assert memory.weight_bytes == 107


def test_an_onnx_file_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_model(tmp_path / "model.onnx"))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"onnx {tmp_path / 'model.onnx'}"
    assert "2 q2export.Q2Double" in lines
    assert "past_key.0 ... 1 float16 [batch, 2, capacity, 64]" in lines
    assert "w/model.safetensors 3 tensors 92 B" in lines
    assert "batch 1,024 tokens 4,096 tokens 16,384 tokens 32,768 tokens" in lines
    assert "1 1.0 MiB 4.0 MiB 16.0 MiB 32.0 MiB" in lines


def test_a_package(qwen2_tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(qwen2_tiny_package), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "package"
    assert found["manifest"]["model"]["parameters"] == 1_780_864
    vectors = 3_712  # norms and biases, widened; matrices are read as they are
    assert found["memory"]["weight_bytes"] == 2 * (1_780_864 - vectors) + 4 * vectors
    assert found["memory"]["kv_cache_bytes_per_token"] == 2 * 5 * 64 * 4
    external_bytes = sum(each["bytes"] for each in found["graph"]["weights"] if each["location"])
    assert external_bytes == 2 * (1_780_864 - 3_712) + 4 * 3_712, "vectors are widened"
    assert {"name": "past_key.4", "dtype": "float32", "shape": ["batch", "1", "capacity", "64"]} in (
        found["graph"]["inputs"]
    )


def test_a_package_where_onnx_is_not_installed(
    qwen2_tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["inspect", str(qwen2_tiny_package)]) == 0
    captured = capsys.readouterr()
    assert "qwen2-tiny" in captured.out
    assert "memory: weights 3.4 MiB" in captured.out
    assert "q2export.Q2RotaryAttention" in captured.out


@pytest.mark.parametrize(
    ("name", "layers", "kv_heads", "experts"), [("qwen2-tiny", 5, 1, None), ("qwen2-moe-tiny", 4, 2, 14)]
)
def test_a_checkpoint(
    name: str,
    layers: int,
    kv_heads: int,
    experts: int | None,
    checkpoints: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(checkpoints / name)]) == 0
    out = capsys.readouterr().out
    assert (f"experts          {experts}, 4 per token" in out) == (experts is not None)
    found = inspect(checkpoints / name)
    assert found.checkpoint is not None
    assert found.memory is not None
    assert found.memory.weight_bytes == 2 * found.checkpoint.parameters
    assert found.memory.kv_cache_bytes_per_token == math.prod((2, layers, kv_heads, 64, 2))
    document = json.loads(json.dumps(found.document()))
    assert document["checkpoint"]["config"]["num_hidden_layers"] == layers
    assert "manifest" not in document


def set_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 62] * 1000


def set_types(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99
    model.graph.initializer[0].data_type = 99


def nest(model: onnx.ModelProto) -> None:
    """Branches of branches: counted as the one node they are in."""
    node = helper.make_node("Identity", ["x"], ["o"])
    for _ in range(30):
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("o", 1, [])])
        node = helper.make_node("If", ["x"], ["o"], then_branch=graph)
    model.graph.node.append(node)


def rename(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "\x1b[2J"


@pytest.mark.parametrize("change", [set_types, nest, rename])
def test_an_onnx_file_of_a_stranger(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert {set_types: "type 99", nest: "If", rename: r"\x1b[2J"}[change] in out
    assert "\x1b" not in out


def test_a_tensor_of_too_many_dimensions(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    set_dims(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Q2ExportError, match=r"model\.onnx: expected .* a tensor of 1000 dimensions"):
        inspect(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.onnx")
    with pytest.raises(Q2ExportError, match=r"x\.onnx"):
        inspect(tmp_path / "x.onnx")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0), removed=st.integers(0, 3), added=st.binary(max_size=3))
def test_damaged_onnx_files(tmp_path: Path, position: int, removed: int, added: bytes) -> None:
    """Summarised or refused; and as the onnx package reads them, where it does."""
    path = tmp_path / "model.onnx"
    content = write_model(path).read_bytes()
    position %= len(content)
    path.write_bytes(content[:position] + added + content[position + removed :])
    try:
        found = summarise_onnx(path)
        model = onnx.load(path, load_external_data=False)
    except (Q2ExportError, DecodeError):
        return
    assert sum(op.count for op in found.ops) == len(model.graph.node)
    assert [one.nodes for one in found.functions] == [len(one.node) for one in model.functions]
    assert len(found.outputs) == len(model.graph.output)
    assert sum(each.tensors for each in found.weights) == len(model.graph.initializer)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0b"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(Q2ExportError, match=r"x\.onnx: expected an ONNX model, found"):
        inspect(tmp_path / "x.onnx")


def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "found a folder with neither manifest.json nor config.json" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none")]) == 1
    assert "expected a package, an ONNX file or a checkpoint folder, found nothing" in capsys.readouterr().err


def test_quantized_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same model, as GPTQModel wrote it and repacked: same parameters, other tensors."""
    assert main(["inspect", str(PUBLISHED / "gptqmodel-act-order")]) == 0
    assert "7 matrices: gptq, 4 bits, groups of 32; build and repack take it" in capsys.readouterr().out
    q2export.repack(PUBLISHED / "gptqmodel-act-order", tmp_path / "stored")
    assert main(["inspect", str(tmp_path / "stored")]) == 0
    assert "7 matrices: int4, blocks of 32, asymmetric, gptq" in capsys.readouterr().out
    published, packed = inspect(PUBLISHED / "gptqmodel-act-order"), inspect(tmp_path / "stored")
    for found in (published, packed):
        assert found.checkpoint is not None and found.memory is not None
        assert (found.checkpoint.parameters, found.checkpoint.quantized) == (67_904, 7)
        assert found.memory.weight_bytes == sum(found.checkpoint.bytes_by_dtype.values())
        assert found.memory.kv_dtype == "bfloat16"
        assert (
            json.loads(json.dumps(found.document()))["checkpoint"]["config"]["quantization"]["method"]
            == "gptq"
        )
    assert main(["inspect", str(PUBLISHED / "autogptq-int8")]) == 0
    assert "8 matrices: gptq, 8 bits, a group per row" in capsys.readouterr().out
