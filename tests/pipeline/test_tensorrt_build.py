"""``build`` for TensorRT on a machine without a GPU: packages, refusals before any work, and kills."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from q2export import api
from q2export.cli.main import main
from q2export.contracts.opspec import CONTRACT_VERSION
from q2export.contracts.profile_loading import load_profile
from q2export.errors import ExportError, MissingDependencyError, ProfileError
from q2export.package.reader import read_package
from q2export.pipeline import engine as engine_build
from q2export.pipeline.gpu import GpuPlan
from q2export.pipeline.memory import GpuNeed
from tests.helpers.checkpoints import CHECKPOINTS, tiny_config, write_checkpoint, write_sparse_checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="needs TensorRT-RTX: pip install 'q2export[rtx]'",
)
DENSE, MOE = CHECKPOINTS / "qwen2-tiny", CHECKPOINTS / "qwen2-moe-tiny"


def build(model: Path, output: Path, profile: str = "a100", **overrides: object) -> api.BuildResult:
    return api.build(model, output, profile=profile, overrides={"builder": "rtx", **overrides})


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(("profile", "dtype"), [("a100", "auto"), ("rtx5090", "float16")])
def test_trained_checkpoints_build(
    tmp_path: Path, model: Path, profile: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_build, "gpus", lambda: ())
    result = build(model, tmp_path / "package", profile, dtype=dtype)
    manifest = result.manifest
    assert read_package(result.package, "full").manifest == manifest
    engine = manifest.engine
    expected = "bfloat16" if dtype == "auto" else dtype
    assert (engine.format, engine.file, engine.dtype, engine.kv_dtype) == (
        "tensorrt", "rank0.engine", expected, expected,
    )  # fmt: skip
    made_by = engine.tensorrt
    assert made_by is not None
    assert (made_by.builder, made_by.plugin_contract_version) == ("rtx", CONTRACT_VERSION)
    assert made_by.compute_capability == load_profile(profile).compute_capability
    assert {"model.onnx", "rank0.engine", "config.json", "tokenizer.json"} <= set(manifest.files)
    assert manifest.parity is None and "run 'q2export verify' on such a machine" in str(
        manifest.parity_skipped
    )
    weights = 2 * manifest.model.parameters
    assert weights < manifest.files["rank0.engine"].bytes < weights + 13e6
    in_place = manifest.weights.in_place_bytes
    assert in_place == (weights if dtype == "auto" else 0)
    assert "--set builder=rtx" in read_package(result.package).rebuild_command()


def reduced_57b() -> dict[str, object]:
    """Qwen2-57B-A14B: 64 experts, top 8, shared expert with a gate, query groups of 7; narrower, 4 layers."""
    return tiny_config(
        model_type="qwen2_moe", hidden_size=224, intermediate_size=296, num_hidden_layers=4,
        num_attention_heads=28, num_key_value_heads=4, head_dim=64, num_experts=64, num_experts_per_tok=8,
        moe_intermediate_size=40, shared_expert_intermediate_size=320, max_position_embeddings=4096,
    )  # fmt: skip


def test_layout_of_57b_builds(tmp_path: Path) -> None:
    from q2export.plugins.tensorrt.builder import Network
    from q2export.plugins.tensorrt.loader import import_tensorrt
    from tests.helpers.tensorrt_layers import list_layers

    model = write_checkpoint(tmp_path / "model", reduced_57b(), dtype="BF16")
    result = build(model, tmp_path / "package")
    layers = list_layers(Network(import_tensorrt("rtx"), result.package / "model.onnx"))
    experts = [layer for layer in layers if layer.plugin == "Q2MoE"]
    assert [len(layer.inputs) for layer in experts] == [2 + 3 * 64] * 4
    assert result.manifest.files["rank0.engine"].bytes < 2 * result.manifest.model.parameters + 13e6


FULL_SIZE = {
    "72B": tiny_config(
        hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=152064,
    ),
    "57B-A14B": tiny_config(
        model_type="qwen2_moe", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, vocab_size=151936, num_experts=64,
        num_experts_per_tok=8, moe_intermediate_size=2560, shared_expert_intermediate_size=20480,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_parses_and_is_refused_before_any_work(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    from q2export.plugins.tensorrt.builder import Network
    from q2export.plugins.tensorrt.loader import import_tensorrt

    model = write_sparse_checkpoint(tmp_path / "model", FULL_SIZE[name])
    exported = api.export(model, tmp_path / "out", target="tensorrt", weights="link")
    network = Network(import_tensorrt("rtx"), exported.onnx)
    assert network.definition.num_inputs == 4 + 2 * (80 if name == "72B" else 28)
    with pytest.raises(ProfileError, match=r"A100 has 80\.0 GiB, but batch 8 .* not even one sequence fits"):
        build(model, tmp_path / "package")
    assert not (tmp_path / "package").exists()
    planned = api.plan(model, profile="a100", overrides={"builder": "rtx", "weight_streaming": True})
    assert planned["gpu"]["host_bytes"] > 1.7 * exported.manifest.weights.in_place_bytes
    caplog.clear()
    need = GpuNeed(1, 1, 0, 0, 0)
    GpuPlan(
        builder="rtx", builder_version="1", need=need, host_bytes=300 << 30, host_available=16 << 30
    ).announce()
    assert "building needs about 300.0 GiB of RAM, 16.0 GiB are free" in caplog.text


def test_a_gpu_the_builder_cannot_target_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"cannot build for H200 \(compute capability 9\.0\).*install the full"
    ):
        build(tmp_path / "no such model", tmp_path / "package", "h200")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="the full TensorRT is installed")
def test_a_builder_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"\[tensorrt\]"):
        build(DENSE, tmp_path / "package", builder="tensorrt")


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ExportError("no engine today")

    monkeypatch.setattr("q2export.plugins.tensorrt.builder.Network.build", refuse)
    with pytest.raises(ExportError, match="no engine today"):
        build(DENSE, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_builder_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "--model", str(DENSE), "--profile", "l4", "--builder", "rtx", "--dry-run"]
    assert main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("builder rtx 1.") for line in lines)
    assert any(line.startswith("GPU memory 1.") and "kv cache" in line for line in lines)
    assert any(line.startswith("RAM to build") for line in lines)
    assert "builder rtx override" in lines
    command[command.index("l4")] = "a100"
    assert main(command) == 0
    assert "warning: TensorRT-RTX builds for compute capability 8.0, but lists" in capsys.readouterr().err
    command[command.index("a100")] = "l4"
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    gpu = plan["gpu"]["gpu_bytes"]
    assert gpu["total"] == gpu["weights"] + gpu["kv_cache"] + gpu["activations"] + (1 << 30)
    assert plan["kv_cache_bytes_per_token"] == 5 * 2 * 1 * 64 * 2


def test_a_profile_for_another_type_is_refused() -> None:
    with pytest.raises(ProfileError, match="dtype 'float32' is not implemented for TensorRT"):
        load_profile("a100", {"dtype": "float32"})
    with pytest.raises(ProfileError, match="kv_dtype 'float16' beside dtype 'bfloat16'"):
        load_profile("a100", {"dtype": "bfloat16", "kv_dtype": "float16"})


def building(model: Path, output: Path) -> subprocess.Popen[str]:
    command = ["--verbose", "build", "--profile", "a100", "--builder", "rtx"]
    script = "import sys; from q2export.cli.main import entry_point; entry_point()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *command, "--model", str(model), "-o", str(output)],
        stderr=subprocess.PIPE,
        text=True,
    )


def staged(folder: Path) -> Iterator[Path]:
    """Files that a build has written so far, under its temporary name."""
    return (path for path in folder.glob(".package.tmp-*/*") if path.is_file())


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "rank0.engine"),
        (signal.SIGTERM, "model.onnx"),  # in Python
        (signal.SIGTERM, "rank0.engine"),  # in TensorRT
        (signal.SIGINT, "rank0.engine"),
    ],
)
def test_killed_builds_leave_no_package(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    process = building(DENSE, tmp_path / "package")
    while not any(path.name == moment for path in staged(tmp_path)) and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, messages = process.communicate()
    finished = process.returncode == 0  # it may have been quicker than the signal
    assert finished == (tmp_path / "package").exists(), messages
    if not finished:
        codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
        assert process.returncode == codes[number], messages
        assert "Traceback" not in messages
        assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


def test_after_a_kill_the_next_build_succeeds_and_cleans_up(tmp_path: Path) -> None:
    process = building(DENSE, tmp_path / "package")
    while not any(staged(tmp_path)) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    build(DENSE, tmp_path / "package", **{"capacity.max": 64})
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_memory_of_the_build_is_said_even_where_there_is_enough(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = str(tmp_path / "package")
    model = str(CHECKPOINTS / "qwen2-tiny")
    assert main(["build", "--model", model, "--profile", "a100", "--builder", "rtx", "-o", output]) == 0
    assert "note: building needs about 0.5 GiB of RAM" in capsys.readouterr().err
