"""The script of ``verify --runner polygraphy``: written whole or not at all, and not fooled by an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import load_json

from q2export import api
from q2export.cli.main import main
from q2export.compare.polygraphy_files import save_outputs
from q2export.compare.polygraphy_script import INPUTS, OUTPUTS, REFERENCE, SETTINGS, write_comparison
from q2export.errors import PackageError


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Path) -> Path:
    return checkpoints / "qwen2-tiny"


@pytest.fixture(scope="module")
def graph(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TensorRT graph in float16, without an engine."""
    output = tmp_path_factory.mktemp("graph") / "fp16"
    return api.export(checkpoint, output, target="tensorrt", dtype="float16").package


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_graph_passes_and_another_reference_does_not(
    graph: Path, checkpoint: Path, tmp_path: Path
) -> None:
    written = write_comparison(graph, checkpoint, tmp_path / "compare")
    assert written.runners == ("onnxrt",)
    result = run(written.script, "--atol", "0.05")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"onnxrt vs. {REFERENCE} | Passed: 1/1 iterations" in result.stdout
    outputs = written.script.with_name(OUTPUTS)
    (reference,) = RunResults.load(str(outputs))[REFERENCE]
    logits = np.array(reference["logits"])
    logits[0, 2, 5] += np.float32(0.1)
    save_outputs(outputs, REFERENCE, [{"logits": logits}])
    assert run(written.script, "--atol", "0.05").returncode == 1


def test_the_reference_is_pytorch_in_float32(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_comparison(graph, checkpoint, tmp_path / "compare").script.parent
    (feed,) = load_json(str(folder / INPUTS))
    assert feed["past_key.0"].dtype == np.float16
    from tests.helpers.transformers_models import load_model, reference_logits

    expected = reference_logits(load_model(checkpoint), feed["input_ids"][0].tolist())
    (reference,) = RunResults.load(str(folder / OUTPUTS))[REFERENCE]
    difference = reference["logits"][0] - expected[feed["logits_indices"][0]]
    assert np.abs(difference).max() < 1e-4


def test_a_package_that_moved_with_its_comparison(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(graph, tmp_path / "a" / "package")
    write_comparison(tmp_path / "a" / "package", checkpoint, tmp_path / "a" / "compare")
    os.rename(tmp_path / "a", tmp_path / "b")
    settings = json.loads((tmp_path / "b" / "compare" / SETTINGS).read_text())
    assert settings["package"] == "../package"
    assert run(tmp_path / "b" / "compare" / "compare.py").returncode == 0


def test_a_runner_that_cannot_run_says_why(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    script = write_comparison(graph, checkpoint, tmp_path / "compare").script
    result = run(script, "--runner", "trt")
    assert result.returncode == 1
    assert "this package holds a graph and no engine" in result.stderr


def test_nothing_is_overwritten_or_left_behind(
    graph: Path, checkpoint: Path, checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match="not the model this package was built from"):
        write_comparison(graph, checkpoints / "qwen2-moe-tiny", tmp_path / "compare")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "compare").mkdir()
    with pytest.raises(PackageError, match="exists already"):
        write_comparison(graph, checkpoint, tmp_path / "compare")
    assert [path.name for path in tmp_path.iterdir()] == ["compare"]


def test_a_bfloat16_graph_without_an_engine_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    package = api.export(checkpoint, tmp_path / "bf16", target="tensorrt", dtype="bfloat16").package
    with pytest.raises(PackageError, match="bfloat16 graph without an engine"):
        write_comparison(package, checkpoint, tmp_path / "compare")


def test_the_command(
    graph: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compare"
    command = ["verify", str(graph), "--model", str(checkpoint), "--runner", "polygraphy"]
    assert main([*command, "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output / 'compare.py'}\n"
    assert captured.err == f"run it with: python {output / 'compare.py'} --runner onnxrt\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner", "polygraphy"], "--runner polygraphy needs --output"),
        (["--runner", "polygraphy", "-o", "x", "--prompt", "a"], "--prompt has no effect with --runner"),
        (["-o", "x"], "--output is for --runner polygraphy"),
        (["--runner", "polygraph"], "'polygraph' is not one of 'q2export', 'polygraphy'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "package", "--model", "m", *arguments]) == 2
    assert message in capsys.readouterr().err
