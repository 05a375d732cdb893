"""Building engines for ONNX Runtime on CUDA, on a machine without a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import q2export
from q2export import api
from q2export.cli.main import main
from q2export.errors import ExportError, MissingDependencyError, OptionError
from q2export.package.reader import read_package
from q2export.runtime.onnxruntime_import import import_onnxruntime
from tests.helpers.checkpoints import CHECKPOINTS

DENSE, MOE = CHECKPOINTS / "qwen2-tiny", CHECKPOINTS / "qwen2-moe-tiny"

no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in import_onnxruntime().get_available_providers(),
    reason="this ONNX Runtime has CUDA",
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.build(MOE, tmp_path_factory.mktemp("packages") / "cuda", profile="cuda").package


def test_weights_are_used_in_place(package: Path) -> None:
    manifest = read_package(package).manifest
    assert (manifest.target, manifest.engine.format) == ("onnxruntime-cuda", "onnx")
    assert (manifest.engine.dtype, manifest.engine.kv_dtype) == ("bfloat16", "bfloat16")
    assert manifest.weights.converted_bytes == 0
    assert os.path.samefile(package / "weights" / "model.safetensors", MOE / "model.safetensors")


@no_cuda
def test_what_is_missing_to_run_it_is_said(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs onnxruntime-gpu" in (read_package(package).manifest.parity_skipped or "")
    with pytest.raises(
        MissingDependencyError, match=r"onnxruntime-gpu; found onnxruntime 1\..* pip uninstall -y"
    ):
        q2export.load(package)
    with pytest.raises(OptionError, match="threads is for engines on the CPU"):
        q2export.load(package, threads=1)
    assert main(["verify", str(package), "--model", str(MOE)]) == 1
    assert "needs onnxruntime-gpu" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["h100", "h200", "b200", "a100"])
def test_auto_takes_onnxruntime_where_no_tensorrt_is_for_the_gpu(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q2export.plugins.tensorrt.loader.gpu_present", lambda: False)
    plan = api.plan(DENSE, profile=profile)
    assert (plan["target"], plan["gpu"]["builder"]) == ("onnxruntime-cuda", "onnxruntime")
    assert plan["gpu"]["gpu_bytes"]["total"] > 1 << 30
    assert "so the engine is one for ONNX Runtime on CUDA" in plan["warnings"][0]


def test_the_command_that_rebuilds_names_the_builder(tmp_path: Path) -> None:
    result = api.build(
        DENSE, tmp_path / "p", profile="h200", overrides={"builder": "onnxruntime"}, parity=False
    )
    assert result.warnings == ()
    assert "--profile h200 --set builder=onnxruntime" in read_package(result.package).rebuild_command()


def test_quantized_experts_are_taken_whole(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = {"quantization.weights": "int4", "quantization.keep": ["*.experts.3.*"]}
    with pytest.raises(ExportError, match="our kernels for ONNX Runtime on CUDA take all or none"):
        api.plan(MOE, profile="cuda", overrides=overrides)
    command = ["build", "--model", str(MOE), "--profile", "cuda", "--dry-run", "--json"]
    assert main([*command, "--quantization", "int4"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert weights["converted_bytes"] < weights["quantized_bytes"] / 10  # scales of linear layers alone
