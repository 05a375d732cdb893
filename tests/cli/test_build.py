"""``build`` and ``export``: what reaches the API, and what is printed of its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from q2export.cli.main import main
from q2export.contracts.quantization import Quantization
from q2export.errors import ParityError
from q2export.package.manifest import FileRecord
from q2export.pipeline.results import BuildResult, ExportResult
from tests.package.packages import make_manifest

MANIFEST = make_manifest({"model.onnx": FileRecord(2048, "0" * 64, "1" * 64)})
PASSES = (("fuse_rotary_attention", 3, ("layer 2: sliding window",)), ("fuse_norm", 7, ()))
SECONDS = {"load": 0.25, "parity": 1.5}
PLAN = {
    "model": {"id": "qwen2-tiny", "revision": None, "model_type": "qwen2", "dtype": "bfloat16"},
    "target": "onnxruntime",
    "dtype": "float32",
    "max_capacity": 1024,
    "weights": {"in_place_bytes": 0, "converted_bytes": 3 << 20, "quantized_bytes": 1 << 20},
    "quantization": {
        "scheme": {"bits": 4, "block_size": 32, "symmetric": False},
        "method": "gptq",
        "embedding": True,
        "keep": [],
        "input_order": False,
    },
    "kv_cache_bytes_per_token": 2560,
    "profile": {"name": "cpu", "gpu": None, "batch": {"max": 8}},
    "origin": {"name": "profile", "gpu": "default", "batch.max": "command line"},
    "warnings": ["config.json: unknown field 'x'"],
}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every call of ``api.build``, which builds nothing."""
    calls: list[dict[str, Any]] = []

    def build(
        model: str | Path,
        output: str | Path,
        *,
        profile: str | Path,
        overrides: Mapping[str, object],
        revision: str | None,
        parity: bool,
        value_scan: bool,
        weights: str,
        timing_cache: Path | None,
        quality_text: Path | None,
        allow_quality_loss: bool,
        overwrite: bool,
    ) -> BuildResult:
        calls.append({name: value for name, value in locals().items() if name != "calls"})
        return BuildResult(Path(output), MANIFEST, ("rope_theta is absent",), PASSES, SECONDS, 5 << 20)

    monkeypatch.setattr("q2export.api.build", build)
    return calls


def test_build_passes_every_option_on(builds: list[dict[str, Any]], tmp_path: Path) -> None:
    assert main(["build", "--model", "Qwen/Qwen2-0.5B", "-o", str(tmp_path / "out")]) == 0
    options = ["--revision", "abc", "--profile", "cpu", "--set", "capacity.max=64", "--set", "threads=2"]
    options += ["--builder", "rtx", "--timing-cache", "kernels", "--quantization", "int8"]
    options += ["--quality-text", "text", "--allow-quality-loss"]
    flags = ["--no-parity", "--no-value-scan", "--weights", "copy", "--overwrite"]
    assert main(["build", "--model", "m", "--output", "o", *options, *flags]) == 0
    assert builds == [
        {
            "model": "Qwen/Qwen2-0.5B",
            "output": tmp_path / "out",
            "profile": "cpu",
            "overrides": {},
            "revision": None,
            "parity": True,
            "value_scan": True,
            "weights": "auto",
            "timing_cache": None,
            "quality_text": None,
            "allow_quality_loss": False,
            "overwrite": False,
        },
        {
            "model": "m",
            "output": Path("o"),
            "profile": "cpu",
            "overrides": {
                "capacity.max": 64,
                "threads": 2,
                "builder": "rtx",
                "quantization.weights": "int8",
            },
            "revision": "abc",
            "parity": False,
            "value_scan": False,
            "weights": "copy",
            "timing_cache": Path("kernels"),
            "quality_text": Path("text"),
            "allow_quality_loss": True,
            "overwrite": True,
        },
    ]


def test_build_prints_a_summary(builds: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--model", "m", "-o", "out"]) == 0
    captured = capsys.readouterr()
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert lines[0] == "built out"
    assert "model Qwen/Qwen2-0.5B @ main (qwen2, 12,345 parameters)" in lines
    assert "weights converted 20 B in 2 tensors" in lines
    assert "parity passed, logit error at most 1.0e-05, top-1 agreement 100.00% of 40 tokens" in lines
    assert "files 2, 2.0 KiB" in lines
    assert "peak memory 5.0 MiB resident" in lines
    assert lines[-3:] == ["time 1.75 s", "load 250.0 ms", "parity 1.50 s"]
    assert captured.err == "warning: rope_theta is absent\n"


def test_build_as_json(builds: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--model", "m", "-o", "out", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["package"] == "out"
    assert document["seconds"] == SECONDS
    assert document["peak_rss_bytes"] == 5 << 20
    assert document["warnings"] == ["rope_theta is absent"]
    assert document["passes"][0] == {
        "name": "fuse_rotary_attention",
        "matched": 3,
        "refused": ["layer 2: sliding window"],
    }
    assert document["manifest"] == json.loads(MANIFEST.to_json())


@pytest.mark.parametrize("setting", ["capacity.max", "=3", "capacity.max=[1"])
def test_build_refuses_a_malformed_setting(
    setting: str, builds: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--model", "m", "-o", "out", "--set", setting]) == 1
    assert f"--set {setting}" in capsys.readouterr().err
    assert builds == []


def test_a_failed_parity_check_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*arguments: object, **options: object) -> BuildResult:
        raise ParityError("layer 3 differs")

    monkeypatch.setattr("q2export.api.build", build)
    assert main(["build", "--model", "m", "-o", "out", "--json"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: layer 3 differs\n")


def test_dry_run_shows_every_value_and_its_origin(
    builds: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def plan(
        model: str, *, profile: str, overrides: Mapping[str, object], revision: str | None
    ) -> dict[str, Any]:
        asked.append((model, profile, overrides, revision))
        return PLAN

    monkeypatch.setattr("q2export.api.plan", plan)
    command = ["build", "--model", "m", "--set", "batch.max=8", "--dry-run"]
    assert main(command) == 0
    captured = capsys.readouterr()
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert "engine onnxruntime, float32, capacity 1,024 tokens" in lines
    assert "quantized 1.0 MiB of these: int4, block 32, asymmetric, gptq" in lines
    assert "KV cache 2.5 KiB per token" in lines
    assert lines[-3:] == ["name cpu profile", "gpu null default", "batch.max 8 command line"]
    assert captured.err == "warning: config.json: unknown field 'x'\n"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PLAN
    assert asked == [("m", "cpu", {"batch.max": 8}, None)] * 2
    assert builds == []


def test_export_passes_every_option_on_and_prints_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    (tmp_path / "model.onnx").write_bytes(b"x" * 1536)

    def export(
        model: str,
        output: Path,
        *,
        target: str,
        dtype: str | None,
        revision: str | None,
        weights: str,
        golden: bool,
        overwrite: bool,
        quantization: Quantization,
    ) -> ExportResult:
        calls.append((model, output, target, dtype, revision, weights, golden, overwrite, quantization))
        return ExportResult(output, output / "model.onnx", MANIFEST, ("careful",), PASSES, SECONDS, 1 << 20)

    monkeypatch.setattr("q2export.api.export", export)
    assert main(["export", "--model", "m", "-o", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"exported {tmp_path}\n  onnx               model.onnx, 1.5 KiB\n")
    assert captured.err == "warning: careful\n"
    options = [
        "--target",
        "tensorrt",
        "--dtype",
        "float16",
        "--revision",
        "r",
        "--weights",
        "link",
        "--golden",
        "--quantization",
        "int4",
    ]
    assert main(["export", "--model", "m", "-o", str(tmp_path), *options, "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["onnx"] == str(tmp_path / "model.onnx")
    assert document["manifest"]["model"]["id"] == "Qwen/Qwen2-0.5B"
    assert calls == [
        ("m", tmp_path, "portable", None, None, "auto", False, False, Quantization()),
        ("m", tmp_path, "tensorrt", "float16", "r", "link", True, True, Quantization(weights="int4")),
    ]
