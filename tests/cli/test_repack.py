"""``q2export repack``: a published checkpoint in the packed form, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import q2export
from q2export.cli.main import main
from tests.exporter.quantization.published.checkpoints import (
    AWQ,
    GPTQ,
    Q_PROJ,
    published_config,
    tensors_of,
    write_published,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = published_config(GPTQ | {"desc_act": True, "unheard_of": 1})
    tensors, _ = tensors_of(config, skip=lambda name: name.startswith(Q_PROJ))
    return write_published(tmp_path / "model", config, tensors)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["repack", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_is_written_and_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--model", model, "-o", tmp_path / "out")
    assert code == 0, err
    assert "6 quantized: int4, blocks of 32, asymmetric, gptq" in out
    assert "inputs are gathered in the order of the groups" in out
    assert "1 weights in floating point" in out
    assert "unknown field 'quantization_config.unheard_of' is ignored" in err
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section == {
        "quant_method": "q2export",
        "format_version": 2,
        "bits": 4,
        "block_size": 32,
        "symmetric": False,
        "method": "gptq",
        "embedding": False,
        "keep": [f"{Q_PROJ}.weight"],
        "input_order": True,
    }


def test_json_and_the_api_say_the_same(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--model", model, "-o", tmp_path / "a", "--json")
    assert code == 0
    document = json.loads(out)
    made = q2export.repack(model, tmp_path / "b")
    assert made.folder == tmp_path / "b"
    assert {name: document["quantization"][name] for name in ("bits", "block_size", "symmetric")} == {
        "bits": 4,
        "block_size": 32,
        "symmetric": False,
    }
    assert document["stored_bytes"] == made.result.stored_bytes
    assert document["weights"] == made.result.weights == 6
    assert document["warnings"] == list(made.warnings)
    assert document["source_bytes"] < (model / "model.safetensors").stat().st_size
    files = ("config.json", "model.safetensors")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--model", model, "-o", tmp_path / "out")[0] == 0
    code, _, err = run(capsys, "--model", model, "-o", tmp_path / "out")
    assert code == 1 and "exists already; choose another output, or overwrite it" in err
    assert run(capsys, "--model", model, "-o", tmp_path / "out", "--overwrite")[0] == 0
    code, _, err = run(capsys, "--model", tmp_path / "out", "-o", tmp_path / "twice")
    assert code == 1 and "expected that of a GPTQ or AWQ checkpoint, found the packed form" in err
    config = published_config(AWQ | {"version": "gemv"})
    (model / "config.json").write_text(json.dumps(config))
    code, out, err = run(capsys, "--model", model, "-o", tmp_path / "new" / "other")
    assert (code, out) == (1, "") and "version: expected 'gemm'" in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
