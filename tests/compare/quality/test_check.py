"""Quality in build and verify: limits that stop a build, what is recorded, comparison with the original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import q2export
from q2export.cli.main import main
from q2export.compare.engine_under_test import EngineUnderTest
from q2export.compare.quality.check import check_quality
from q2export.compare.quality.results import QualityReport
from q2export.compare.quality.sample_text import TEXT
from q2export.compare.quality.text import quality_windows
from q2export.contracts.profile_loading import load_profile
from q2export.errors import ParityError
from q2export.exporter.checkpoint.source import load_source
from q2export.inspect.machine import Gpu
from q2export.package.manifest import Manifest
from q2export.pipeline import engine as engine_build
from tests.helpers.checkpoints import tiny_config, write_checkpoint

DATA = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
MODEL = DATA / "qwen2-tiny"
INT4 = {"quantization.weights": "int4"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text((DATA / "held_out.txt").read_text(encoding="utf-8")[:2500], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("built") / "int4"
    return q2export.build(MODEL, folder, overrides=INT4, quality_text=text).package


def test_a_build_measures_and_records_quality(package: Path) -> None:
    manifest = Manifest.from_json((package / "manifest.json").read_text())
    found = manifest.quality
    assert found is not None and manifest.quality_skipped is None and found.measured == "engine"
    assert found.passed and found.text == "held_out.txt" and 256 < found.tokens <= 512
    report = QualityReport.from_json((package / "quality.json").read_text(encoding="utf-8"))
    assert report.passed and report.text.mean_kl == found.mean_kl > 0
    assert "quality.json" in manifest.files
    assert report.quantization.bits == 4 and len(report.layers) == 5


def test_reports_of_a_build_do_not_depend_on_where_it_was_made(
    package: Path, text: Path, tmp_path: Path
) -> None:
    again = q2export.build(MODEL, tmp_path / "another name", overrides=INT4, quality_text=text).package
    for name in ("parity.json", "quality.json"):
        assert (again / name).read_text("utf-8") == (package / name).read_text("utf-8")
        assert "another name" not in (again / name).read_text("utf-8")


def test_a_broken_limit_stops_the_build_and_leaves_nothing(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--model", str(MODEL), "--quantization", "int4", "--quality-text", str(text)]
    arguments += ["--set", "quality.max_mean_kl=1e-6", "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "quantization costs more than the profile allows; nothing was kept" in error
    assert "mean KL divergence" in error and "exceeds 1e-06" in error and "allow the loss" in error
    assert list(tmp_path.iterdir()) == []

    assert main([*arguments, "--allow-quality-loss"]) == 0
    assert "BEYOND THE LIMITS" in capsys.readouterr().out
    manifest = Manifest.from_json((tmp_path / "out" / "manifest.json").read_text())
    assert manifest.quality is not None and not manifest.quality.passed


class Flat:
    """An engine to which every token is as likely as any other."""

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        return np.zeros((len(tokens), 1536), dtype=np.float32)


@pytest.mark.parametrize("present", ["8.0", "8.9", None])
def test_a_tensorrt_engine_is_measured_itself_where_its_gpu_is(
    package: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: str | None
) -> None:
    """On an A100; on a machine with another GPU; on one without."""
    gpus = () if present is None else (Gpu("a GPU", present, 40_000, "580"),)
    monkeypatch.setattr(engine_build, "gpus", lambda: gpus)
    monkeypatch.setattr(EngineUnderTest, "probe", lambda _: Flat())
    job: Any = SimpleNamespace(
        model=SimpleNamespace(id="m"),
        weights=SimpleNamespace(original=load_source(MODEL)),
        profile=load_profile("a100"),
        gpu=SimpleNamespace(),
    )
    made: Any = SimpleNamespace(quantization="int4", source=load_source(package / "weights"))
    engine = Manifest.from_json((package / "manifest.json").read_text()).engine
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    written: dict[str, str] = {}
    writer: Any = SimpleNamespace(folder=tmp_path, add_text=written.__setitem__)
    found, _ = check_quality(writer, job, made, engine, text=text, allow_loss=True)
    assert found is not None and found.measured == ("engine" if present == "8.0" else "pytorch")
    assert (found.quantized_perplexity == pytest.approx(1536)) is (present == "8.0")
    assert QualityReport.from_json(written["quality.json"]).measured == found.measured


def test_verify_against_the_original_is_about_quality(
    package: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "quality.html"
    arguments = ["verify", str(package), "--model", str(MODEL), "--text", str(text), "--report", str(page)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PASS: int4 against qwen2-tiny\n") and "Perplexity" in printed
    assert "Large weight error" in printed and "logits of the engine" in printed
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] and document["text"]["name"] == "held_out.txt"
    # Every weight has its error: the tied embedding, and seven matrices of each of five layers.
    assert len(document["weights"]) == 1 + 5 * 7
    assert all(0 < weight["relative_error"] < 0.2 for weight in document["weights"])
    assert "quality report" in page.read_text(encoding="utf-8")


def test_verify_against_the_quantized_checkpoint_is_about_parity(
    tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = q2export.quantize(MODEL, tmp_path / "q").folder
    arguments = ["verify", str(package), "--model", str(quantized), "--greedy-tokens", "8"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["max_abs_error"] < 1e-3


def test_an_engine_built_from_a_quantized_checkpoint_has_nothing_to_compare_with(tmp_path: Path) -> None:
    quantized = q2export.quantize(MODEL, tmp_path / "q").folder
    built = q2export.build(quantized, tmp_path / "out")
    assert built.manifest.quality is None
    assert built.manifest.quality_skipped == (
        "the checkpoint is quantized already, so there is nothing to compare with"
    )


def test_without_parity_or_tokenizer_nothing_is_measured_and_it_is_said(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", tiny_config(hidden_size=64, num_attention_heads=4))
    built = q2export.build(model, tmp_path / "a", overrides=INT4)
    assert built.manifest.quality_skipped == (
        "the checkpoint holds no tokenizer.json, and quality is measured on text"
    )
    built = q2export.build(model, tmp_path / "b", overrides=INT4, parity=False)
    assert built.manifest.quality_skipped == "not asked for"
    built = q2export.build(model, tmp_path / "c", parity=False)
    assert built.manifest.quality_skipped is None  # nothing is quantized


def test_prompts_say_nothing_about_quality(package: Path) -> None:
    with pytest.raises(ParityError, match="leave the prompts out and give a text"):
        q2export.verify(package, MODEL, prompts=["A class"])


def test_the_built_in_text_fills_several_windows(tmp_path: Path) -> None:
    windows = quality_windows(MODEL, None, 512, 1024)
    assert windows.name == "the built-in text" and [len(each) for each in windows.windows] == [256, 256]
    assert [len(each) for each in quality_windows(MODEL, TEXT, 100, 64).windows] == [64, 36]
    with pytest.raises(ParityError, match=r"absent\.txt: cannot be read as UTF-8 text"):
        quality_windows(MODEL, tmp_path / "absent.txt", 100, 64)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ParityError, match=r"binary\.txt: cannot be read as UTF-8 text"):
        quality_windows(MODEL, binary, 100, 64)
