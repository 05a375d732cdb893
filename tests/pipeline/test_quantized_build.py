"""Building and verifying engines with quantized weights, through the command line where people do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from q2export import api
from q2export.cli.main import main
from q2export.contracts.quantization import Quantization
from q2export.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    PackageError,
    ProfileError,
    Q2ExportError,
)
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.source import load_source
from q2export.package.manifest import SCHEMA_VERSION
from q2export.package.reader import read_package
from tests.helpers.checkpoints import CHECKPOINTS, PUBLISHED, split_file, tiny_config, write_checkpoint
from tests.helpers.quantized import MODELS, TOKENS, write_packed
from tests.helpers.transformers_models import MODELS as TRANSFORMERS
from tests.helpers.transformers_models import load_model, reference_logits

SETTINGS = {"threads": 1, "prefill_chunk": 7, "capacity.max": 64}


def original(folder: Path, model: str) -> Path:
    return write_checkpoint(folder / model, tiny_config(**MODELS[model]), dtype="BF16")


@pytest.mark.parametrize(("model", "weights"), [("dense-tied", "int4"), ("moe", "int8")])
def test_from_a_checkpoint_to_text_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, weights: str
) -> None:
    source, package = original(tmp_path, model), tmp_path / "package"
    options = ["--quantization", weights, "--set", "threads=1", "--set", "quantization.activations=int8"]
    options += ["--set", "parity.max_abs_logit_error=2", "--set", "parity.max_kl_divergence=1"]
    options += ["--set", "parity.min_cosine_similarity=0.9", "--json"]
    assert main(["build", "--model", str(source), "-o", str(package), *options]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    quantization = manifest["quantization"]
    assert (quantization["bits"], quantization["activations"]) == (int(weights[3:]), "int8")
    assert quantization["kept_weights"] == 0 and manifest["schema_version"] == SCHEMA_VERSION
    (weights_file,) = [one for one in manifest["weights"]["files"] if one["placement"] == "quantized"]
    assert weights_file["path"] == "weights/model.safetensors"
    assert weights_file["sources"] == ["model.safetensors"]
    assert all(record["sha256"] for record in manifest["files"].values())
    opened = read_package(package, "full")
    assert opened.manifest.weights.value_scan and opened.manifest.parity is not None
    # The package's own quantized checkpoint is what the engine must equal.
    assert main(["verify", str(package), "--model", str(package / "weights"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["inspect", str(package)]) == 0
    assert f"int{quantization['bits']}, blocks of 32, symmetric" in capsys.readouterr().out
    assert len(api.load(package).generate([3, 5, 7], max_new_tokens=4, ignore_eos=True).token_ids) == 4


@pytest.mark.parametrize("name", ["qwen2-tiny", "qwen2-moe-tiny"])
def test_a_trained_checkpoint_is_padded_and_equals_pytorch(name: str, tmp_path: Path) -> None:
    result = api.build(
        CHECKPOINTS / name, tmp_path / "p", overrides={"quantization.weights": "int4", **SETTINGS}
    )
    parity = result.manifest.parity
    assert parity is not None and parity.passed and parity.max_abs_error < 1e-4, "products in float32"
    assert [*result.seconds][:3] == ["load", "quantize", "trace and lower"]
    text = api.load(result.package).generate("The for statement", max_new_tokens=8).text
    assert text


@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_experts_equal_transformers_over_dequantized_weights(
    tmp_path: Path, norm_topk_prob: bool, weights: str
) -> None:
    """float32 activations: QMoE with the full softmax as router weights, or single experts for 8 bits."""
    model = "moe-norm-tied" if norm_topk_prob else "moe"
    source = write_packed(tmp_path, model, Quantization(weights=weights))  # type: ignore[arg-type]
    package = api.build(source.folder, tmp_path / "package", overrides=SETTINGS, parity=False).package
    oracle = load_model(tmp_path / "original")
    values = ParameterValues(source.checkpoint, source.packed)
    state = oracle.state_dict()
    for name in source.packed:
        if ".experts." not in name:
            state[name].copy_(torch.from_numpy(values.read(name)))
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        for expert in range(6):
            parts = [values.read(f"{prefix}.{expert}.{part}_proj.weight") for part in ("gate", "up", "down")]
            state[f"{prefix}.gate_up_proj"][expert].copy_(torch.from_numpy(np.concatenate(parts[:2])))
            state[f"{prefix}.down_proj"][expert].copy_(torch.from_numpy(parts[2]))
    expected = reference_logits(oracle, TOKENS)
    assert type(oracle) is TRANSFORMERS["qwen2_moe"] and np.abs(expected).max() > 3
    assert np.abs(api.load(package).score(TOKENS) - expected).max() <= 1e-4


@pytest.mark.parametrize("name", ["autogptq-int4", "autogptq-int8-act-order", "gptqmodel-moe", "autoawq"])
def test_published_checkpoints_are_repacked_and_equal_pytorch(name: str, tmp_path: Path) -> None:
    result = api.build(PUBLISHED / name, tmp_path / "p", overrides=SETTINGS)
    quantization, parity = result.manifest.quantization, result.manifest.parity
    assert quantization is not None and quantization.method in ("gptq", "awq")
    assert quantization.input_order == ("act-order" in name)
    assert parity is not None and parity.passed and parity.max_abs_error < 1e-3


def test_a_quantized_checkpoint_is_linked_not_copied(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "dense", Quantization(weights="int4", symmetric=False))
    result = api.build(source.folder, tmp_path / "package", overrides=SETTINGS, weights="link")
    (placed,) = [one for one in result.manifest.weights.files if one.placement != "converted"]
    assert placed.placement in ("hardlink", "reflink")
    assert result.manifest.quantization is not None and not result.manifest.quantization.symmetric


def test_scales_are_scanned(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "dense", Quantization(weights="int4"))
    ref = source.checkpoint.tensors["model.layers.1.mlp.up_proj.weight_scale"]
    with ref.file.open("r+b") as file:
        file.seek(ref.offset + 2 * (2 * ref.shape[1] + 1))
        file.write(np.float16("nan").tobytes())
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale'?\[2, 1\]: nan"):
        api.build(source.folder, tmp_path / "package", overrides=SETTINGS)
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"1 missing: 'model\.norm\.weight'"),
        ("surplus", r"1 surplus: 'extra'"),
        ("dtype", r"'model\.embed_tokens\.weight' is F32, expected U8"),
        ("scheme", r"of the wrong shape: .*embed_tokens\.weight"),
        (
            "version",
            r"format_version: expected 2, found 1; make it again with this version: q2export quantize",
        ),
    ],
)
def test_a_damaged_quantized_checkpoint_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    folder = write_packed(tmp_path, "dense", Quantization(weights="int4"), dtype="F32").folder
    tensors = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    if damage == "missing":
        del tensors["model.norm.weight"]
    elif damage == "surplus":
        tensors["extra"] = np.zeros(3, np.float32)
    elif damage == "dtype":
        name = "model.embed_tokens.weight"
        tensors[name] = tensors[name].astype(np.float32)
    else:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= {"bits": 8} if damage == "scheme" else {"format_version": 1}
        (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_source(folder)


@pytest.mark.parametrize(
    ("profile", "overrides", "error", "message"),
    [
        (
            "a100",
            {"quantization.weights": "int4", "quantization.keep": ["*.experts.0.*"]},
            ExportError,
            "take all or none",
        ),
        ("a100", {"quantization.weights": "int4", "quantization.symmetric": False}, ProfileError, "no zero"),
        ("cpu", {"quantization.weights": "int4", "quantization.keep": ["x"]}, ProfileError, "'x' matches no"),
        ("cpu", {"quantization.weights": "int4", "dtype": "float16"}, ProfileError, "use 'float32'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path,
    profile: str,
    overrides: dict[str, object],
    error: type[Q2ExportError],
    message: str,
) -> None:
    if profile == "a100":
        pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'q2export[rtx]'")
        overrides = overrides | {"builder": "rtx"}
    with pytest.raises(error, match=message):
        api.build(original(tmp_path, "moe"), tmp_path / "out", profile=profile, overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    packed = write_packed(tmp_path, "dense", Quantization(weights="int4", block_size=64)).folder
    for overrides, message in (
        ({"quantization.weights": "int8"}, "weights is 'int8', but .* already, with 'int4'"),
        ({"quantization.weights": "none"}, "weights is 'none', but .* already, with 'int4'"),
        ({"quantization.block_size": 32}, "block_size is 32, but .* already, with 64"),
    ):
        with pytest.raises(ProfileError, match=message):
            api.plan(packed, overrides=overrides)
    planned = api.plan(packed, profile="cpu-int4")
    assert planned["quantization"]["block_size"] == 64, "the profile's 32 is for other checkpoints"
    assert planned["weights"]["quantized_bytes"] == sum(
        weight.nbytes for weight in load_source(packed).packed.values()
    )


def test_sizes_are_planned_before_anything_is_quantized(tmp_path: Path) -> None:
    source = original(tmp_path, "dense-tied")
    overrides = {"quantization.weights": "int4", **SETTINGS}
    planned = api.plan(source, overrides=overrides)["weights"]
    weights = api.build(source, tmp_path / "p", overrides=overrides, parity=False).manifest.weights
    assert planned["in_place_bytes"] == weights.in_place_bytes == planned["quantized_bytes"]
    assert planned["converted_bytes"] == weights.converted_bytes


def test_another_quantization_is_not_compared(tmp_path: Path) -> None:
    source = write_packed(tmp_path, "dense", Quantization(weights="int4"))
    package = api.build(tmp_path / "original", tmp_path / "p", overrides=SETTINGS, parity=False).package
    with pytest.raises(PackageError, match="quantization bits is 4, the package has None"):
        api.verify(package, source.folder)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_tensorrt_engine_without_a_gpu(tmp_path: Path, weights: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'q2export[rtx]'")
    overrides = {"quantization.weights": weights, "builder": "rtx", "capacity.max": 64}
    result = api.build(CHECKPOINTS / "qwen2-tiny", tmp_path / "p", profile="a100", overrides=overrides)
    assert result.manifest.engine.tensorrt is not None
    assert result.manifest.files["rank0.engine"].bytes > 0
    assert result.manifest.parity is None and "compute capability 8.0" in str(result.manifest.parity_skipped)
    quality = result.manifest.quality
    assert quality is not None and quality.measured == "pytorch", "the engine cannot run here"
    graph = onnx.load(result.package / "model.onnx", load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    wanted = onnx.TensorProto.INT4 if weights == "int4" else onnx.TensorProto.INT8
    assert types["model.embed_tokens.weight/codes"] == wanted, "the tied head"
    assert types["model.embed_tokens.weight/words"] == onnx.TensorProto.INT32, "the embedding"


def test_export_quantizes_too(tmp_path: Path) -> None:
    source = original(tmp_path, "dense")
    options = ["--quantization", "int8", "--target", "portable", "--dtype", "float32"]
    assert main(["export", "--model", str(source), "-o", str(tmp_path / "out"), *options]) == 0
    header, _ = split_file(tmp_path / "out" / "weights" / "model.safetensors")
    assert header["model.layers.0.mlp.up_proj.weight"]["dtype"] == "U8"
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "model.onnx"), full_check=True)
