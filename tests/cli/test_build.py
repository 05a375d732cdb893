"""``build`` and ``export`` of a trained checkpoint: what lies in the output, and what is printed of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from q2export.cli.main import main
from q2export.errors import ParityError
from tests.helpers.checkpoints import tiny_config, write_checkpoint


@pytest.fixture
def checkpoint(checkpoints: Path) -> str:
    return str(checkpoints / "qwen2-tiny")


def words(text: str) -> list[str]:
    """Lines with single spaces, however they are aligned."""
    return [" ".join(line.split()) for line in text.splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return document


def test_build_with_every_check(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["build", "--model", checkpoint, "-o", str(output)]) == 0
    captured = capsys.readouterr()
    lines = words(captured.out)
    assert lines[0] == f"built {output}"
    assert "model qwen2-tiny (qwen2, 1,780,864 parameters)" in lines
    assert "limits batch 8, capacity 1,024 tokens" in lines
    assert any(line.startswith("parity passed, logit error at most") for line in lines)
    assert {"load", "trace and lower", "onnx"} <= {line.rsplit(" ", 2)[0] for line in lines}
    assert captured.err == ""
    assert (output / "golden/inputs.json").is_file()
    assert main(["build", "--model", checkpoint, "-o", str(output)]) == 1
    assert f"{output} exists" in capsys.readouterr().err


def test_build_with_other_settings(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    values = ["--set", "capacity.max=64", "--set", "threads=2", "--quantization", "int8"]
    flags = ["--no-parity", "--weights", "copy", "--json"]
    command = [
        "build",
        "--model",
        checkpoint,
        "--profile",
        "cpu-int4",
        "--output",
        str(output),
        *flags,
        *values,
    ]
    assert main(command) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    manifest = manifest_of(output)
    assert document["package"] == str(output)
    assert document["manifest"] == manifest
    assert {"load", "quantize", "trace and lower"} <= set(document["seconds"])
    assert document["passes"][0].keys() == {"name", "matched", "refused"}
    assert manifest["engine"]["max_capacity"] == 64
    assert manifest["profile_overrides"] == {
        "capacity.max": 64, "threads": 2, "quantization.weights": "int8"
    }  # fmt: skip
    assert manifest["quantization"]["bits"] == 8
    assert manifest["parity"] is None and "not asked for" in manifest["parity_skipped"]
    assert main(command) == 1
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set", "capacity.max=999999"],
            "capacity.max is 999999, but the model holds sequences of 1024",
        ),
        (["--builder", "rtx"], "builder is 'rtx', which is for target 'tensorrt' or"),
        (["--set", "quantization.block_size=64"], "quantization.block_size is given, but no weight is"),
        (["--set", "quality.max_mean_kl=1"], "quality.max_mean_kl is given, but no weight is quantized"),
        (["--profile", "cpu-int88"], "did you mean 'cpu-int8'? (a file of your own is given by its path"),
        (["--set", "capacity.max=[1"], "--set capacity.max=[1"),
        (["--revision", "main"], "a local folder has no revisions"),
        (
            ["--profile", "cpu-bf16", "--quantization", "int4"],
            "activations is 'bfloat16', which is for weights",
        ),
        (["--profile", "a100", "--set", "quantization.activations=bfloat16"], "the target is 'tensorrt'"),
        (["--timing-cache", "x"], "--timing-cache is for engines that the full TensorRT builds"),
        (["--allow-quality-loss"], "--allow-quality-loss has no effect: no weight is quantized"),
        (["--no-parity", "--quality-text", "x"], "--quality-text has no effect: without the parity check"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_cannot_be_met_is_refused(
    options: list[str],
    message: str,
    dry: list[str],
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["build", "--model", checkpoint, "-o", str(tmp_path / "out"), *options, *dry]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["capacity.max", "=3"])
def test_a_malformed_setting_is_a_matter_of_usage(
    setting: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--model", checkpoint, "--dry-run", "--set", setting]) == 2
    assert f"--set {setting}: expected KEY=VALUE" in capsys.readouterr().err


def test_a_failed_check_exits_with_1_and_leaves_nothing(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(*arguments: object, **options: object) -> None:
        raise ParityError("layer 3 differs")

    monkeypatch.setattr("q2export.compare.build_checks.check_engine", differs)
    assert main(["build", "--model", checkpoint, "-o", str(tmp_path / "out"), "--json"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: layer 3 differs\n")
    assert list(tmp_path.iterdir()) == []


def test_verbose_tells_stages_and_their_seconds_and_bars_show_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    # of a size that no other test has: a model that has been traced is not traced again
    checkpoint = write_checkpoint(tmp_path / "model", tiny_config(head_dim=16, vocab_size=277))
    command = ["export", "--model", str(checkpoint), "-o", str(tmp_path / "out")]
    assert main(["--verbose", *command]) == 0
    err = capsys.readouterr().err
    for stage in ("load", "trace and lower", "weights in place", "onnx"):
        assert f"info: {stage} ...\n" in err
        assert re.search(rf"info: {stage}: \d+\.\d\d s\n", err)
    assert re.search(r"info: \w+: \d+ places, \d+\.\d\d s\n", err)  # of a pass
    assert "tracing: 100%" in err and "lowering: 100%" in err


def test_dry_run_shows_every_value_and_its_origin(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["build", "--model", checkpoint, "--profile", "cpu-int4", "--set", "batch.max=4", "--dry-run"]
    assert main(command) == 0
    lines = words(capsys.readouterr().out)
    assert "engine onnxruntime, float32, capacity 1,024 tokens" in lines
    assert "quantized 988.9 KiB of these: int4, blocks of 32, symmetric, round-to-nearest" in lines
    assert {"batch.max 4 override", "capacity.max 1024 lowered to fit", "gpu null default"} <= set(lines)
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["profile"]["batch"]["max"] == 4
    assert document["origin"]["batch.max"] == "override"
    assert list(tmp_path.iterdir()) == []


def test_export(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["export", "--model", checkpoint, "-o", str(output)]
    assert main([*command, "--target", "tensorrt", "--dtype", "float16", "--golden"]) == 0
    lines = words(capsys.readouterr().out)
    assert lines[0] == f"exported {output}"
    assert lines[1].startswith("onnx model.onnx, ")
    assert manifest_of(output)["engine"]["dtype"] == "float16"
    assert (output / "golden/inputs.json").is_file()
    assert main([*command, "--quantization", "int4", "--overwrite", "--weights", "copy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["onnx"] == str(output / "model.onnx")
    assert document["manifest"] == manifest_of(output)
    assert (document["manifest"]["target"], document["manifest"]["quantization"]["bits"]) == ("portable", 4)
