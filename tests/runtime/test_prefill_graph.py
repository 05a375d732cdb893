"""Engines with a second graph for prompts: what goes through it, and what it leaves in the cache."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import q2export
from q2export import runtime
from q2export.errors import PackageError, Q2ExportError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from q2export.runtime.cpu import has_exact_int8_matmuls
from tests.exporter.quantization.models import MOE, blocks_config
from tests.helpers.checkpoints import write_checkpoint

OVERRIDES: dict[str, object] = {
    "batch.max": 3,
    "capacity.max": 64,
    "prefill_chunk": 16,
    "quantization.weights": "int4",
    "quantization.prefill": "int8",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineInfo]:
    folder = tmp_path_factory.mktemp("prefill")
    checkpoint = write_checkpoint(folder / "checkpoint", blocks_config())
    result = q2export.build(checkpoint, folder / "package", parity=False, overrides=OVERRIDES)
    return result.package, result.manifest.engine


@pytest.fixture
def exact_int8_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    """Needed wherever the graph is to be used."""
    if not has_exact_int8_matmuls():
        pytest.skip("int8 matmuls are not exact on this processor, so the prefill graph is not used")


def backend(built: tuple[Path, EngineInfo], **options: object) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(*built, threads=1, prepack=True, **options)  # type: ignore[arg-type]


def tokens(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(rows * count).integers(0, 131, (rows, count))


def test_the_graph_has_no_head_and_no_rest_of_the_last_layer(built: tuple[Path, EngineInfo]) -> None:
    folder, engine = built
    assert engine.prefill_file == "prefill.onnx"
    graph = onnx.load(str(folder / "prefill.onnx"), load_external_data=False).graph
    ops = Counter(node.op_type for node in graph.node)
    layers = engine.num_hidden_layers
    assert ops["MatMulIntegerToFloat"] == layers + 4 * (layers - 1)  # qkv; o, gate, up and down
    assert ops["GroupQueryAttention"] == layers
    assert "logits" not in {value.name for value in graph.output}
    assert "logits_indices" not in {value.name for value in graph.input}
    # What both graphs read is in the package once.
    places = {
        tensor.name: [entry.value for entry in tensor.external_data][:2]
        for name in ("model.onnx", "prefill.onnx")
        for tensor in onnx.load(str(folder / name), load_external_data=False).graph.initializer
        if tensor.name.endswith("norm.weight")
    }
    assert all(location != "prefill.safetensors" for location, _ in places.values())


@pytest.mark.usefixtures("exact_int8_matmul")
def test_a_prompt_fills_the_cache_as_the_first_graph_does(built: tuple[Path, EngineInfo]) -> None:
    with_graph, without = backend(built, prefill_from=4), backend(built, prefill=False)
    assert with_graph.has_prefill_graph and not without.has_prefill_graph
    ids, past = tokens(2, 9), np.zeros(2, np.int64)
    lengths = np.array([9, 5])
    caches = [engine.new_cache(2, 20) for engine in (with_graph, without)]
    found, expected = (
        engine.forward(cache, ids, past, lengths, (lengths - 1)[:, None])
        for engine, cache in zip((with_graph, without), caches, strict=True)
    )
    assert found.shape == expected.shape == (2, 1, 131)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    for row, length in enumerate(lengths):
        one, other = (cache.data[:, :, row, :, :length] for cache in caches)
        assert 0 < np.abs(one - other).max() < 0.05 * np.abs(other).max()


@pytest.mark.usefixtures("exact_int8_matmul")
@pytest.mark.parametrize(
    ("lengths", "wanted", "graphs"),
    [
        ([9], "last", [1, 0]),
        ([9], "none", [1]),
        ([9], "all", [0]),
        ([3], "last", [0]),
        ([9, 1], "last", [0]),
        ([1], "last", [0]),
    ],
    ids=["prompt", "chunk", "score", "short", "a row of one token", "decode"],
)
def test_which_graph_takes_a_step(
    built: tuple[Path, EngineInfo], tmp_path: Path, lengths: list[int], wanted: str, graphs: list[int]
) -> None:
    engine = backend(built, prefill_from=4, profile=tmp_path / "trace")
    rows, longest = len(lengths), max(lengths)
    query = np.array(lengths)
    indices = {
        "last": (query - 1)[:, None],
        "none": np.empty((rows, 0), np.int64),
        "all": np.tile(np.arange(longest), (rows, 1)),
    }[wanted]
    logits = engine.forward(engine.new_cache(rows, 20), tokens(rows, longest), query * 0, query, indices)
    assert logits.shape == (rows, indices.shape[1], 131)
    assert engine.calls == graphs


@pytest.mark.usefixtures("exact_int8_matmul")
def test_generation_and_profile_use_both_graphs(built: tuple[Path, EngineInfo]) -> None:
    folder, _ = built
    engine = runtime.load(folder, threads=1)
    first = engine.generate(tokens(1, 40)[0], max_new_tokens=5, do_sample=False)
    again = engine.generate(tokens(1, 40)[0], max_new_tokens=5, do_sample=False)
    assert first.token_ids == again.token_ids
    found = runtime.profile(folder, tokens(1, 50).tolist(), 3, repeat=1, warmup=0, threads=1)
    assert "MatMulIntegerToFloat" not in {op.op_type for op in found.decode.operators}
    assert found.prefill.calls == 4  # 50 tokens in chunks of 16, each too short for the other graph


def test_a_processor_without_exact_products_uses_the_first_graph(
    built: tuple[Path, EngineInfo], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("q2export.runtime.backends.onnxruntime.has_exact_int8_matmuls", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert not backend(built).has_prefill_graph
    assert "prefill.onnx is not used: int8 matmuls are not exact on this processor" in caplog.text


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "exact"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f\n", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
        ("arm64", None, True),
    ],
)
def test_which_processors_have_exact_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str | None, exact: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert has_exact_int8_matmuls(path) is exact


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {"quantization.weights": "none"}, "no weight is quantized"),
        (MOE, {}, "the model has routed experts"),
    ],
    ids=["unquantized", "moe"],
)
def test_an_int8_prefill_that_cannot_be_had_is_refused(
    tmp_path: Path, config: dict[str, object], changes: dict[str, object], message: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", blocks_config(**config))
    with pytest.raises(Q2ExportError, match=message):
        q2export.build(checkpoint, tmp_path / "package", parity=False, overrides=OVERRIDES | changes)
    assert not (tmp_path / "package").exists()


def test_a_package_whose_prefill_graph_is_missing_is_refused(
    built: tuple[Path, EngineInfo], tmp_path: Path
) -> None:
    folder, engine = built
    (tmp_path / "model.onnx").hardlink_to(folder / "model.onnx")
    with pytest.raises(PackageError):
        OnnxRuntimeBackend(tmp_path, engine)
