"""Small engine packages for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from q2export.contracts.profile_loading import load_profile
from q2export.package.manifest import (
    EngineInfo,
    FileRecord,
    Manifest,
    ModelInfo,
    ParitySummary,
    WeightFile,
    WeightsInfo,
)
from q2export.package.writer import PackageWriter

PROFILE = load_profile("cpu", {"capacity.max": 8192})
ENGINE = EngineInfo(
    format="onnx",
    file="model.onnx",
    dtype="float32",
    kv_dtype="float32",
    num_hidden_layers=3,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=151,
    max_batch=8,
    max_capacity=1024,
    prefill_chunk=512,
    context_length=32768,
)


def make_manifest(files: Mapping[str, FileRecord], weights: tuple[WeightFile, ...] = ()) -> Manifest:
    return Manifest(
        op_contract_version=1,
        model=ModelInfo("Qwen/Qwen2-0.5B", "main", "qwen2", 12345, "snapshot"),
        target="onnxruntime",
        profile=PROFILE,
        profile_overrides=PROFILE.overrides(),
        engine=ENGINE,
        weights=WeightsInfo(True, weights, 10, 1, 20, 2),
        parity=ParitySummary(True, 40, 1e-5, 1e-6, 1e-9, 1.0, 1.0),
        parity_skipped=None,
        files=dict(files),
        libraries={"onnx": "1.23.2"},
    )


def graph_text(producer: str = "graph") -> str:
    """The smallest ONNX model, one node without inputs, by that producer: it happens to be ASCII."""
    return f"\x12{chr(len(producer))}{producer}\x3a\x0c\x0a\x0a\x22\x08Identity"


def write_package(
    output: Path, *, text: str = "graph", overwrite: bool = False, shard: Path | None = None
) -> Path:
    """A package of two files, and of ``shard`` if one is given; ``text`` is within the first."""
    with PackageWriter.open(output, overwrite=overwrite) as writer:
        writer.add_text("model.onnx", graph_text(text))
        writer.add_text("tokenizer/tokenizer.json", "{}")
        if shard:
            writer.place_weights(shard, f"weights/{shard.name}")
        writer.write_manifest(make_manifest(writer.files, writer.weights))
    return output
