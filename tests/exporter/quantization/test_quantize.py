"""A checkpoint through the quantizer: what is in the file, that it is the same always, what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import CheckpointError, PackageError, ProfileError
from q2export.exporter.checkpoint.folder import read_blocks
from q2export.exporter.checkpoint.selection import select_weights
from q2export.exporter.checkpoint.source import Source, load_source
from q2export.exporter.checkpoint.values import convert_block
from q2export.exporter.quantization.quantize import QuantizeResult, quantize_weights, source_bytes
from q2export.exporter.quantization.round_to_nearest import round_to_nearest
from tests.exporter.quantization.models import MOE, blocks_config, dequantize, read_tensors
from tests.helpers.checkpoints import write_checkpoint, write_sparse_checkpoint

INT4, INT8 = Quantization("int4"), Quantization("int8", symmetric=False, embedding=False)


def float32(source: Source, name: str) -> np.ndarray:
    ref = source.checkpoint.tensors[name]
    blocks = [convert_block(raw, ref.dtype, "F32").view(np.float32) for _, raw in read_blocks(ref)]
    return np.concatenate(blocks).reshape(ref.shape)


def quantized(source: Source, path: Path, how: Quantization = INT4, **options: int) -> QuantizeResult:
    return quantize_weights(source, path, how, **options)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "how", [INT4, Quantization("int8", symmetric=False, embedding=False)], ids=["int4", "int8"]
)
@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, MOE], ids=["dense", "moe"])
def test_the_file_holds_each_weight_rounded_to_nearest_and_all_else_unchanged(
    dtype: str, how: Quantization, config: dict[str, object], tmp_path: Path
) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config(**config), dtype=dtype, shards=2))
    result = quantized(source, tmp_path / "out", how)
    tensors = read_tensors(tmp_path / "out")
    weights = select_weights(source.config, PackedQuantization.of(how))
    for weight in weights.values():
        values = float32(source, weight.name)
        expected = round_to_nearest(values, weight.scheme).dequantized(weight.scheme)
        assert np.array_equal(dequantize(tensors, weight), expected)
    for name, ref in source.checkpoint.tensors.items():
        if name not in weights:
            raw = np.concatenate([block for _, block in read_blocks(ref)])
            assert tensors[name].tobytes() == raw.tobytes() and tensors[name].shape == ref.shape
    assert sorted(one.name for one in result.weights) == sorted(weights)
    assert result.stored_bytes == (tmp_path / "out").stat().st_size


def test_the_statistics_are_those_of_the_file(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config(**MOE), dtype="BF16"))
    result = quantized(source, tmp_path / "out", chunk_values=200)
    tensors = read_tensors(tmp_path / "out")
    weights = select_weights(source.config, PackedQuantization.of(INT4))
    squares = [0.0, 0.0]
    for one in result.weights:
        values = float32(source, one.name).astype(np.float64)
        error = float(((values - dequantize(tensors, weights[one.name])) ** 2).sum())
        norm = float((values**2).sum())
        assert (one.squared_error, one.squared_norm) == pytest.approx((error, norm), rel=1e-5)
        assert one.relative_error == pytest.approx((error / norm) ** 0.5, rel=1e-5)
        assert one.source_bytes == values.size * 2
        assert one.stored_bytes == values.size // 2 + values.size // 32 * 2
        squares[0], squares[1] = squares[0] + error, squares[1] + norm
    assert result.relative_error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-5)
    assert result.source_bytes == source_bytes(source)


def test_neither_threads_nor_chunks_change_a_byte_or_a_sum(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config(**MOE), dtype="BF16"))
    how = Quantization("int4", symmetric=False)
    runs = [(1, 1 << 18), (2, 1), (3, 777), (2, 4096)]
    results = [
        quantized(source, tmp_path / f"out{i}", how, threads=threads, chunk_values=chunk)
        for i, (threads, chunk) in enumerate(runs)
    ]
    contents = [(tmp_path / f"out{i}").read_bytes() for i in range(len(runs))]
    assert all(content == contents[0] for content in contents)
    assert all(result.weights == results[0].weights for result in results)


def test_progress_counts_every_byte_of_the_source_once(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    steps: list[int] = []
    quantize_weights(source, tmp_path / "out", INT4, chunk_values=500, advance=steps.append)
    assert sum(steps) == source_bytes(source) and len(steps) > 20


@pytest.mark.parametrize(
    ("name", "index"), [("model.layers.1.mlp.up_proj.weight", [40, 7]), ("model.norm.weight", [63])]
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_named(
    name: str, index: list[int], value: float, tmp_path: Path
) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    ref = source.checkpoint.tensors[name]
    flat = int(np.ravel_multi_index(index, ref.shape))
    with ref.file.open("r+b") as file:
        file.seek(ref.offset + 4 * flat)
        file.write(np.float32(value).tobytes())
    with pytest.raises(CheckpointError) as refused:
        quantized(source, tmp_path / "out", chunk_values=640)
    assert f"tensor {name!r}{index}: {value!r}, expected a finite number" in str(refused.value)


def test_a_value_too_large_for_any_scale_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    ref = source.checkpoint.tensors[name]
    with ref.file.open("r+b") as file:
        file.seek(ref.offset + 4 * (40 * ref.shape[1] + 7))
        file.write(np.float32(-1e6).tobytes())
    with pytest.raises(CheckpointError, match=rf"{name}'?: row 40 needs a scale of .*--keep '{name}'"):
        quantized(source, tmp_path / "out", chunk_values=640)


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    packed = replace(source.config, quantization=PackedQuantization.of(INT4))
    with pytest.raises(CheckpointError, match=r"config\.json: the checkpoint is quantized already"):
        quantized(replace(source, config=packed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_the_model_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    with pytest.raises(ProfileError, match="128 does not divide the 64 columns"):
        quantized(source, tmp_path / "out", Quantization("int4", block_size=128))
    assert not (tmp_path / "out").exists()


def test_a_disk_too_small_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(write_checkpoint(tmp_path, blocks_config()))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PackageError, match=r"not enough space .* for quantized weights"):
        quantized(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


_MEASURE = """
import sys
from dataclasses import replace
from pathlib import Path
from q2export.exporter.quantization.quantize import quantize_weights
from q2export.exporter.checkpoint.source import load_source
from q2export.pipeline.stopwatch import peak_rss_bytes
from q2export.contracts.quantization import Quantization
source = load_source(Path(sys.argv[1]))
before = peak_rss_bytes()
quantize_weights(source, Path(sys.argv[2]), Quantization("int4"))
print(peak_rss_bytes() - before)
print(sorted({"torch", "onnx", "onnx_ir", "safetensors", "transformers"} & set(sys.modules)))
"""


def test_memory_is_bounded_and_neither_torch_nor_onnx_is_loaded(tmp_path: Path) -> None:
    """250 MB of weights, of which one matrix has 100 MB and one row 128 KB."""
    config = blocks_config(hidden_size=512, intermediate_size=32768, vocab_size=100_000, num_hidden_layers=1)
    folder = write_sparse_checkpoint(tmp_path, config | {"tie_word_embeddings": True}, shards=1)
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    peak, modules = run.stdout.splitlines()
    assert int(peak) < 60e6
    assert modules == "[]"
