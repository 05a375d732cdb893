"""``q2export quantize``: from options to a checkpoint, and what is printed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import q2export
from q2export.cli.main import main
from q2export.contracts.quantization import Quantization
from tests.exporter.quantization.models import MOE, blocks_config
from tests.helpers.checkpoints import write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", blocks_config(**MOE, rope_theta=None), dtype="BF16")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["quantize", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def section(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def test_every_option_reaches_the_checkpoint(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quantization", "int8", "--block-size", "64", "--asymmetric", "--no-embedding"]
    keep = ["--keep", "*.down_proj.weight", "--keep", "model.layers.1.*"]
    code, out, err = run(capsys, "--model", model, "-o", tmp_path / "out", *options, *keep)
    assert code == 0, err
    found = section(tmp_path / "out")
    expected = {"bits": 8, "block_size": 64, "symmetric": False, "embedding": False}
    assert expected.items() <= found.items()
    assert found["keep"] == ["*.down_proj.weight", "model.layers.1.*"]
    assert "18 quantized: int8, blocks of 64, asymmetric, round-to-nearest" in out
    assert "rope_theta" in err


def test_json_says_the_same_for_programs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--model", model, "-o", tmp_path / "out", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["stored_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert document["quantization"]["weights"] == "int4" and document["quantization"]["block_size"] == 32
    assert document["source_bytes"] > 2 * document["stored_bytes"]
    assert len(document["weights"]) == 2 + 2 * (4 + 3 * 7)
    assert 0.05 < document["relative_error"] < 0.1
    assert {"name", "shape", "relative_error", "stored_bytes"} <= document["weights"][0].keys()


def test_the_api_does_the_same(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--model", model, "-o", tmp_path / "a")[0] == 0
    made = q2export.quantize(model, tmp_path / "b")
    assert made.folder == tmp_path / "b" and made.result.quantization == Quantization("int4")
    files = ("config.json", "model.safetensors")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "modle.layers.0.*"], "error: quantization.keep: 'modle.layers.0.*' matches no weight"),
        (["--block-size", "128"], "error: quantization.block_size: 128 does not divide the 64 columns of"),
    ],
)
def test_a_refused_request_is_one_message_and_leaves_nothing(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--model", model, "-o", tmp_path / "out", *options)
    assert (code, out) == (1, "") and message in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_quantized_model_and_an_output_in_the_way_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "--model", model, "-o", tmp_path / "out")[0] == 0
    code, _, err = run(capsys, "--model", model, "-o", tmp_path / "out")
    assert code == 1 and "exists already; choose another output, or overwrite it" in err
    code, _, err = run(capsys, "--model", tmp_path / "out", "-o", tmp_path / "out2")
    assert code == 1 and "is quantized already" in err
    assert run(capsys, "--model", model, "-o", tmp_path / "out", "--overwrite")[0] == 0


def test_an_unknown_type_is_a_usage_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "--model", model, "-o", tmp_path / "out", "--quantization", "int3")
    assert code == 2 and "int3" in err


def test_a_report_compares_with_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trained model: what the table says is in the JSON, and the page is there."""
    data = Path(__file__).resolve().parents[1] / "data" / "checkpoints"
    text = tmp_path / "text.txt"
    text.write_text((data / "held_out.txt").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    page, out = tmp_path / "quality.html", tmp_path / "out"
    options = ["--model", data / "qwen2-tiny", "-o", out, "--text", text, "--report", page, "--json"]
    code, printed, err = run(capsys, *options)
    assert code == 0, err
    quality = json.loads(printed)["quality"]
    found = quality["quantization"]
    assert (found["bits"], found["block_size"], found["symmetric"]) == (4, 32, True)
    assert quality["text"]["name"] == "text.txt" and quality["text"]["tokens"] > 500
    increase = quality["text"]["quantized_perplexity"] / quality["text"]["reference_perplexity"] - 1
    assert -0.05 < increase < 0.05 and increase != 0
    assert [layer["name"] for layer in quality["layers"]] == [f"model.layers.{i}" for i in range(5)]
    assert all(0.01 < layer["output_error"] < 0.2 for layer in quality["layers"])
    assert len(quality["weights"]) == 1 + 5 * 7
    assert quality["quantized_bytes"] < 0.35 * quality["reference_bytes"]
    assert "qwen2-tiny" in page.read_text(encoding="utf-8")

    report = q2export.quality_report(data / "qwen2-tiny", out, text=text)
    assert report.text.quantized_perplexity == quality["text"]["quantized_perplexity"]


def test_what_cannot_be_compared_is_refused(model: Path, tmp_path: Path) -> None:
    quantized = q2export.quantize(model, tmp_path / "out").folder
    with pytest.raises(
        q2export.Q2ExportError, match=r"holds no tokenizer\.json, and quality is measured on text"
    ):
        q2export.quality_report(model, quantized)
    with pytest.raises(q2export.Q2ExportError, match="is quantized itself; give the model it was made from"):
        q2export.quality_report(quantized, quantized)


@pytest.fixture
def calibration(model: Path, tmp_path: Path) -> Path:
    """A text of seven letters; the model gets a tokenizer of the 256 bytes."""
    write_checkpoint(model, blocks_config(**MOE, vocab_size=260), dtype="BF16")
    bytes_ = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choices("bcdefgh", k=900)), encoding="utf-8")
    return text


def test_calibration_text_makes_it_gptq(
    model: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--calibration", calibration, "--calibration-tokens", "700"]
    code, out, err = run(capsys, "--model", model, "-o", tmp_path / "out", *options)
    assert code == 0, err
    assert section(tmp_path / "out")["method"] == "gptq"
    assert "quantized: int4, blocks of 32, symmetric, gptq" in out
    assert "rounded to nearest  model.embed_tokens.weight" in out
    code, out, err = run(
        capsys, "--model", model, "-o", tmp_path / "b", *options, "--method", "gptq", "--json"
    )
    assert code == 0, err
    methods = {one["name"]: one["method"] for one in json.loads(out)["weights"]}
    assert methods["model.embed_tokens.weight"] == "round-to-nearest"
    assert methods["model.layers.0.self_attn.q_proj.weight"] == methods["lm_head.weight"] == "gptq"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "b")]
    assert weights[0] == weights[1]


def test_calibration_that_cannot_be_is_refused(
    model: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: object) -> str:
        code, out, err = run(capsys, "--model", model, "-o", tmp_path / "out", *options)
        assert (code, out) == (1, "") and not (tmp_path / "out").exists()
        return err

    given = ["--calibration", calibration]
    assert "method gptq needs text to calibrate on" in refused("--method", "gptq")
    assert "method round-to-nearest does not calibrate" in refused("--method", "round-to-nearest", *given)
    assert "the calibration text has 9 tokens" in refused(*given, "--calibration-tokens", "9")
    assert "nowhere.txt: cannot be read" in refused("--calibration", tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").touch()
    assert "empty.txt: is empty" in refused("--calibration", tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "latin.txt: cannot be read as UTF-8 text" in refused("--calibration", tmp_path / "latin.txt")
    write_checkpoint(model, blocks_config(**MOE, vocab_size=40), dtype="BF16")
    assert "the model has 40 tokens, the tokenizer makes token" in refused(*given)
    (model / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in refused(*given)
