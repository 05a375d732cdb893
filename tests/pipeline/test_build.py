"""The pipeline end to end, on the trained test checkpoints and on small random ones."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from q2export import api
from q2export.errors import CheckpointError, ExportError, PackageError, ParityError
from q2export.package.reader import read_package
from q2export.pipeline.results import BuildResult
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.helpers.checkpoints import (
    CHECKPOINTS,
    split_file,
    tiny_config,
    write_checkpoint,
    write_sparse_checkpoint,
)

DENSE, MOE = CHECKPOINTS / "qwen2-tiny", CHECKPOINTS / "qwen2-moe-tiny"


@pytest.fixture(scope="module", params=[DENSE, MOE], ids=["dense", "moe"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return api.build(request.param, tmp_path_factory.mktemp("built") / "package")


def overwrite_value(folder: Path, tensor: str, index: int, bits: bytes) -> None:
    """Put other bits in place of one element of a tensor in ``model.safetensors``."""
    path = folder / "model.safetensors"
    header, data = split_file(path)
    start = len(path.read_bytes()) - len(data)
    begin = header[tensor]["data_offsets"][0]  # type: ignore[index]
    with path.open("r+b") as file:
        file.seek(start + begin + index * len(bits))
        file.write(bits)


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a checkpoint."""
    header = split_file(folder / "model.safetensors")[0]
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}  # type: ignore[index]


def values_in_place(folder: Path) -> int:
    """Of a checkpoint of 16 bits: those of matrices."""
    return sum(math.prod(shape) for shape in shapes_of(folder).values() if len(shape) == 2)


def test_build_is_checked_and_described(built: BuildResult) -> None:
    manifest = built.manifest
    assert manifest.parity is not None and manifest.parity.passed
    assert manifest.parity.max_abs_error < 1e-4
    assert manifest.weights.value_scan
    in_place = values_in_place(CHECKPOINTS / manifest.model.source_folder)
    assert manifest.weights.in_place_bytes == 2 * in_place, "matrices are read as they are"
    assert manifest.weights.converted_bytes == 4 * (manifest.model.parameters - in_place)
    assert {"model.onnx", "weights.safetensors", "config.json", "tokenizer.json", "parity.json"} <= set(
        manifest.files
    )
    assert {"golden/inputs.json", "golden/outputs.json"} <= set(manifest.files)
    assert read_package(built.package, "full").manifest == manifest
    assert list(built.seconds) == [
        "load",
        "trace and lower",
        "weights in place",
        "weights converted",
        "onnx",
        "parity",
        "golden",
        "open",
    ]


def test_package_can_be_moved_and_generates(built: BuildResult, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "engine"
    shutil.copytree(built.package, moved)
    prompts = ["The for statement", "Classes are"]
    here = api.load(built.package).generate(prompts[0], max_new_tokens=24, do_sample=False)
    engine = api.load(moved, check="full")
    there = engine.generate(prompts[0], max_new_tokens=24, do_sample=False)
    assert here.token_ids == there.token_ids
    assert (len(here.text) > 20 and here.text.isprintable()) or "\n" in here.text


def test_verify_passes_and_writes_the_report(built: BuildResult, tmp_path: Path) -> None:
    model = DENSE if built.manifest.model.model_type == "qwen2" else MOE
    page = tmp_path / "report.html"
    text = (CHECKPOINTS / "held_out.txt").read_text()[:2000]
    report = api.verify(built.package, model, greedy_tokens=12, text=text, report=page)
    assert report.passed, report.failures
    assert report.total is not None and report.total.max_abs_error < 1e-4
    assert all(one.greedy is None or one.greedy.differences == 0 for one in report.sequences)
    assert "<html" in page.read_text().lower()


def test_verify_refuses_another_model(built: BuildResult) -> None:
    other = MOE if built.manifest.model.model_type == "qwen2" else DENSE
    with pytest.raises(PackageError, match="not the model this package was built from: model_type is"):
        api.verify(built.package, other)


def test_fp32_checkpoint_is_linked_not_copied(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_config(), dtype="F32", shards=2)
    result = api.build(model, tmp_path / "package")
    weights = result.manifest.weights
    assert weights.converted_bytes == 0 and weights.in_place_bytes == 4 * result.manifest.model.parameters
    assert {one.placement for one in weights.files} <= {"hardlink", "reflink"}
    for one in weights.files:
        if one.placement == "hardlink":
            assert (result.package / one.path).stat().st_ino == (model / Path(one.path).name).stat().st_ino
    # Only the checkpoint's own folder may go away: the package keeps the data.
    shutil.rmtree(model)
    assert api.load(result.package).score([1, 2, 3]).shape[0] == 3


def test_links_are_followed_as_in_a_hub_cache(tmp_path: Path) -> None:
    real = write_checkpoint(tmp_path / "real", tiny_config(), dtype="F32")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(real.iterdir())):
        shutil.move(file, blobs / f"blob{number}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob{number}")
    result = api.build(snapshot, tmp_path / "package")
    assert result.manifest.parity is not None and result.manifest.parity.passed
    assert result.manifest.weights.converted_bytes == 0


@pytest.mark.parametrize("bits", [b"\x80\x7f", b"\xc0\x7f"], ids=["inf", "nan"])
def test_values_are_scanned(tmp_path: Path, bits: bytes) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_config(), dtype="BF16")
    overwrite_value(model, "model.layers.0.mlp.up_proj.weight", 37, bits)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight'?\[\d+, \d+\]"):
        api.build(model, tmp_path / "package")
    assert not list(tmp_path.glob("*package*"))
    result = api.build(model, tmp_path / "package", value_scan=False, parity=False)
    assert not result.manifest.weights.value_scan
    assert "golden/inputs.json" not in result.manifest.files, "the engine is not to be run"
    assert result.manifest.parity is None and result.manifest.parity_skipped


def test_export_reads_no_weights(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_config(), dtype="BF16")
    overwrite_value(model, "model.norm.weight", 0, b"\xc0\x7f")
    result = api.export(model, tmp_path / "out", target="tensorrt")
    assert result.manifest.weights.converted_bytes == 0
    assert not result.manifest.weights.value_scan


def test_failed_parity_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q2export.exporter import reference

    embed = reference.CheckpointReference.embed
    monkeypatch.setattr(reference.CheckpointReference, "embed", lambda self, ids: embed(self, ids) * 1.5)
    with pytest.raises(ParityError, match="not equal to PyTorch"):
        api.build(DENSE, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_what_a_target_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="runs in float32"):
        api.export(DENSE, tmp_path / "out", target="onnxruntime", dtype="bfloat16")
    exported = api.export(DENSE, tmp_path / "portable", target="portable").package
    with pytest.raises(PackageError, match="a graph for target 'portable', no engine"):
        api.load(exported)
    with pytest.raises(PackageError, match="exists"):
        api.export(DENSE, exported)


def test_capacity_follows_profile_and_model(tmp_path: Path) -> None:
    result = api.build(
        DENSE, tmp_path / "a", overrides={"capacity.max": 40, "prefill_chunk": 7}, parity=False
    )
    engine = result.manifest.engine
    assert (engine.max_capacity, engine.prefill_chunk) == (40, 7)
    backend = OnnxRuntimeBackend(result.package, engine)
    cache = backend.new_cache(1, 40)
    ids = np.arange(40, dtype=np.int64)[None]
    logits = backend.forward(cache, ids, np.array([0]), np.array([40]), np.array([[39]]))
    assert np.isfinite(logits).all()
    assert (
        api.plan(DENSE)["max_capacity"]
        == json.loads((DENSE / "config.json").read_text())["max_position_embeddings"]
    )


def test_a_package_without_a_tokenizer_is_warned_about(tmp_path: Path) -> None:
    assert not any("tokenizer" in warning for warning in api.plan(DENSE)["warnings"])
    model = write_checkpoint(tmp_path / "model", tiny_config())
    expected = "model holds no tokenizer.json: the package takes and gives token ids, no text"
    assert any(expected in warning for warning in api.plan(model)["warnings"])
    assert any(expected in one for one in api.build(model, tmp_path / "out", parity=False).warnings)


def test_plan_writes_nothing_and_counts_bytes(tmp_path: Path) -> None:
    planned = api.plan(DENSE, overrides={"threads": 3})
    in_place = values_in_place(DENSE)
    anew = sum(map(math.prod, shapes_of(DENSE).values())) - in_place
    none = {"quantized_bytes": 0}
    assert planned["weights"] == {"in_place_bytes": 2 * in_place, "converted_bytes": 4 * anew} | none
    assert planned["quantization"] is None
    assert planned["origin"]["threads"] == "override"


DENSE_72B = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
MOE_57B = {
    "model_type": "qwen2_moe",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2560,
    "shared_expert_intermediate_size": 20480,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
}
EXPORT = """
import sys
from q2export import api
result = api.export(sys.argv[1], sys.argv[2], target="tensorrt", weights="link")
print(result.peak_rss_bytes, result.manifest.weights.in_place_bytes, result.manifest.weights.converted_bytes)
"""


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_full_size_export_is_bounded(tmp_path: Path, kind: str) -> None:
    """Sparse files in the shape of Qwen2-72B and Qwen2-57B-A14B: bounded memory, next to nothing written."""
    config = DENSE_72B if kind == "dense" else MOE_57B
    model = write_sparse_checkpoint(tmp_path / "model", tiny_config(**config))
    command = [sys.executable, "-c", EXPORT, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, in_place, converted = (int(word) for word in done.stdout.split()[-3:])
    assert peak <= 700e6
    assert in_place > 100e9 and converted == 0
    written = sum(
        file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.suffix != ".safetensors"
    )
    assert written <= 10e6
