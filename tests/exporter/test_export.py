"""From a checkpoint to a lowered graph and the plan of its weights; the exported folder of each target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import q2export
from q2export.contracts import opspec
from q2export.contracts.quantization import Quantization, WeightType
from q2export.errors import CheckpointError, ConfigError, ExportError, PackageError
from q2export.exporter.checkpoint.folder import SINGLE_FILE
from q2export.exporter.export import build_graph, load_source, target_dtype
from q2export.exporter.reference import CheckpointReference
from q2export.exporter.weights import convert, place
from q2export.exporter.weights.plan import as_it_is
from q2export.exporter.weights.sizes import planned_bytes
from q2export.runtime.backends.onnxruntime import step_inputs
from q2export.runtime.onnxruntime_import import import_onnxruntime
from tests.helpers.checkpoints import tiny_config, write_checkpoint, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", tiny_config(head_dim=16))


@pytest.mark.parametrize(
    ("own", "target", "asked", "expected"),
    [
        ("F32", "portable", None, "float32"),
        ("BF16", "portable", None, "float32"),
        ("BF16", "portable", "bfloat16", "bfloat16"),
        ("F16", "portable", None, "float16"),
        ("F16", "portable", "float32", "float32"),
        ("BF16", "onnxruntime", None, "float32"),
        ("F16", "onnxruntime", "float32", "float32"),
        ("F32", "tensorrt", None, "float16"),
        ("F32", "tensorrt", "float32", "float32"),
        ("BF16", "tensorrt", None, "bfloat16"),
    ],
)
def test_type_of_the_graph(tmp_path: Path, own: str, target: str, asked: str | None, expected: str) -> None:
    source = load_source(write_checkpoint(tmp_path / "c", tiny_config(), dtype=own))
    assert target_dtype(source.dtype, target, asked) == expected


@pytest.mark.parametrize(
    ("target", "dtype", "message"),
    [
        ("onnxruntime", "bfloat16", "target onnxruntime runs in float32 on the CPU, not in bfloat16"),
        ("portable", "float61", "dtype 'float61' is not implemented; did you mean 'float16'"),
        ("tensort", None, "target 'tensort' is not implemented; did you mean 'tensorrt'"),
    ],
)
def test_what_cannot_be_exported(
    folder: Path, tmp_path: Path, target: str, dtype: str | None, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        q2export.export(folder, tmp_path / "out", target=target, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_planned_bytes_are_those_bound(tmp_path: Path, dtype: str) -> None:
    """Mixed types, and a tied head that is stored although it is the embedding."""
    checkpoint = write_checkpoint(tmp_path / "c", tiny_config(tie_word_embeddings=True))
    tensors = load_file(checkpoint / SINGLE_FILE)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype("<f2")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, checkpoint / SINGLE_FILE)
    source = load_source(checkpoint)
    plan = build_graph(source, "portable", dtype).plan
    assert plan.in_place_bytes > 0 and plan.converted_bytes > 0
    planned = planned_bytes(as_it_is(source), "portable", dtype)
    assert (planned.in_place, planned.converted) == (plan.in_place_bytes, plan.converted_bytes)


def test_passes_are_reported(folder: Path) -> None:
    source = load_source(folder)
    assert build_graph(source, "portable", "float32").passes == ()
    counts = {
        name: (matched, refused)
        for name, matched, refused in build_graph(source, "onnxruntime", "float32").passes
    }
    assert counts["FuseRotaryAttention"] == (2, ())


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_moe"])
def test_exported_folder(tmp_path: Path, target: str, kind: str) -> None:
    config = tiny_config(model_type=kind, head_dim=16, num_key_value_heads=7, mystery_field=3)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config, shards=2)
    write_json(checkpoint / "generation_config.json", {"eos_token_id": 3})
    result = q2export.export(checkpoint, tmp_path / "out", target=target, dtype="float32")
    assert result.package == tmp_path / "out"
    assert result.onnx == tmp_path / "out" / "model.onnx"
    assert {path.relative_to(result.package).as_posix() for path in result.package.rglob("*.*")} == {
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.onnx",
        "weights/model-00001-of-00002.safetensors",
        "weights/model-00002-of-00002.safetensors",
    }
    assert any("'mystery_field'" in warning for warning in result.warnings)
    manifest = json.loads((result.package / "manifest.json").read_text())
    assert manifest["target"] == target
    assert manifest["model"]["model_type"] == kind
    assert manifest["parity"] is None and manifest["parity_skipped"] == "exported, not built"
    assert manifest["weights"]["value_scan"] is False
    assert manifest["weights"]["converted_bytes"] == 0
    assert manifest["engine"]["max_capacity"] == manifest["engine"]["context_length"] == 512
    proto = onnx.load(result.onnx, load_external_data=False)
    custom = {node.op_type for node in proto.graph.node if node.domain == opspec.DOMAIN}
    moe = {"Q2MoE"} if kind == "qwen2_moe" else set()
    assert (
        custom
        == {
            "portable": {"Q2RotaryEmbedding", "Q2GroupQueryAttention"} | moe,
            "onnxruntime": {"Q2Linear", "Q2SwiGLU", "Q2RotaryAttention"} | moe,
            "tensorrt": {"Q2RotaryAttention"} | moe,
        }[target]
    )
    assert custom <= {function.name for function in proto.functions}
    assert (proto.producer_name, proto.producer_version) == ("q2export", q2export.__version__)


@pytest.mark.parametrize(
    ("name", "dtype", "weights", "bound"),
    [
        ("qwen2-tiny", None, "none", 1e-4),
        ("qwen2-moe-tiny", None, "none", 1e-4),
        ("qwen2-tiny", None, "int4", None),
        ("qwen2-tiny", "float16", "none", 2e-2),
    ],
)
def test_the_portable_default_runs_in_onnx_runtime(
    checkpoints: Path, tmp_path: Path, name: str, dtype: str | None, weights: WeightType, bound: float | None
) -> None:
    """As documented: from bfloat16 weights, with nothing but ONNX Runtime's own defaults."""
    result = q2export.export(
        checkpoints / name, tmp_path / "out", dtype=dtype, quantization=Quantization(weights=weights)
    )
    tokens = [17, 4, 256, 3]
    session = import_onnxruntime().InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], step_inputs(result.manifest.engine, tokens, np.arange(4)))
    if bound is None:
        assert np.isfinite(logits).all()
        return
    expected = CheckpointReference(load_source(checkpoints / name)).run([tokens]).logits[0]
    assert np.abs(logits[0] - expected).max() <= bound


def test_a_bfloat16_graph_says_where_it_does_not_run(
    checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = q2export.export(checkpoints / "qwen2-tiny", tmp_path / "out", dtype="bfloat16")
    said = [record.message for record in caplog.records if record.name.startswith("q2export")]
    assert len(said) == 1 and "ONNX Runtime cannot load this graph on the CPU" in said[0]
    assert result.manifest.weights.converted_bytes == 0


def test_no_value_is_read_that_is_not_converted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(place, "read_blocks", refuse)
    monkeypatch.setattr(convert, "read_blocks", refuse)
    q2export.export(folder, tmp_path / "out", target="onnxruntime")
    with pytest.raises(AssertionError, match="a weight was read"):
        q2export.export(folder, tmp_path / "converted", dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_wrong_checkpoints_leave_nothing_behind(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config())
    output = tmp_path / "out"
    write_json(checkpoint / "config.json", tiny_config(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match="12 missing"):
        q2export.export(checkpoint, output)
    write_json(checkpoint / "config.json", tiny_config(hidden_act="gelu"))
    with pytest.raises(ConfigError, match=r"config\.json: hidden_act"):
        q2export.export(checkpoint, output)
    write_json(checkpoint / "config.json", tiny_config())
    q2export.export(checkpoint, output)
    with pytest.raises(PackageError, match="exists"):
        q2export.export(checkpoint, output)
    before = (output / "manifest.json").stat().st_mtime_ns
    q2export.export(checkpoint, output, overwrite=True)
    assert (output / "manifest.json").stat().st_mtime_ns != before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}


def test_converted_values_are_scanned(tmp_path: Path) -> None:
    """They are read anyway; float16, the default of target tensorrt, must not turn a weight into infinity."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config())
    tensors = load_file(checkpoint / SINGLE_FILE)
    tensors["model.norm.weight"][5] = 70_000
    save_file(tensors, checkpoint / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight'\[5\]: 70000\.0 is beyond F16"):
        q2export.export(checkpoint, tmp_path / "out", target="tensorrt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    result = q2export.export(checkpoint, tmp_path / "out", target="tensorrt", dtype="bfloat16")
    assert result.manifest.weights.value_scan  # all were converted
