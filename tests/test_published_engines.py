"""GPTQ and AWQ checkpoints as engines: package against transformers, which gets the dequantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

import q2export
from q2export.cli.main import main
from tests.exporter.quantization.models import MOE
from tests.exporter.quantization.published.checkpoints import (
    AWQ,
    GPTQ,
    K_PROJ,
    published_config,
    tensors_of,
    write_published,
)
from tests.helpers.transformers_models import load_model, reference_greedy, reference_logits

FIXTURES = Path(__file__).parent / "data" / "published"
# One of each kind of graph. That the values are right, of all: tests/exporter/quantization/published.
NAMES = ("autoawq", "autogptq-int4", "autogptq-int8", "gptqmodel-act-order", "gptqmodel-moe")
MAX_ABS_ERROR = 1e-4  # of logits up to 6
GREEDY_TOKENS = 20
TOKENS = [5, 100, 33, 7, 120, 121, 9, 77, 130, 64, 0]


def write_dequantized(folder: Path, published: Path, weights: dict[str, torch.Tensor]) -> Path:
    """The model without quantization: its own tensors in floating point, ``weights`` for the packed ones."""
    config = json.loads((published / "config.json").read_text())
    del config["quantization_config"]
    tensors = load_file(published / "model.safetensors")
    plain = {
        name: values.float()
        for name, values in tensors.items()
        if name.endswith((".weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"))
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    save_file(plain | weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_agrees(published: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Logits of every token, and greedy tokens, which the oracle must not choose by a hair."""
    oracle = load_model(write_dequantized(tmp_path / "dequantized", published, weights))
    engine = q2export.load(q2export.build(published, tmp_path / "package").package)
    expected = reference_logits(oracle, TOKENS)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(engine.score(TOKENS), expected, atol=MAX_ABS_ERROR, rtol=0)
    greedy, margin = reference_greedy(oracle, TOKENS[:3], GREEDY_TOKENS)
    assert margin > 2 * MAX_ABS_ERROR
    generated = engine.generate(TOKENS[:3], max_new_tokens=GREEDY_TOKENS, do_sample=False, ignore_eos=True)
    assert list(generated.token_ids) == greedy


@pytest.mark.parametrize("name", NAMES)
def test_what_other_tools_wrote(name: str, tmp_path: Path) -> None:
    assert_agrees(FIXTURES / name, load_file(FIXTURES / "dequantized" / f"{name}.safetensors"), tmp_path)


@pytest.mark.parametrize(
    ("section", "overrides", "skipped"),
    [
        (GPTQ | {"desc_act": True}, {}, K_PROJ),
        (GPTQ | {"desc_act": True}, MOE, "none"),
        (AWQ, MOE, "model.layers.0.mlp.experts.2.up_proj"),
    ],
    ids=["act-order without one of three", "act-order of experts", "an expert that is not quantized"],
)
def test_mixtures(section: dict[str, Any], overrides: dict[str, Any], skipped: str, tmp_path: Path) -> None:
    config = published_config(section, **overrides)
    tensors, weights = tensors_of(config, skip=lambda name: name.startswith(skipped))
    folder = write_published(tmp_path / "published", config, tensors)
    assert_agrees(folder, {name: torch.from_numpy(values) for name, values in weights.items()}, tmp_path)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = FIXTURES / "gptqmodel-act-order"
    assert main(["build", "--model", str(folder), "-o", str(tmp_path / "package"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["parity"]["passed"] is True
    assert main(["repack", "--model", str(folder), "-o", str(tmp_path / "stored")]) == 0
    assert main(["build", "--model", str(tmp_path / "stored"), "-o", str(tmp_path / "again")]) == 0
    packed = [tmp_path / name / "weights" / "model.safetensors" for name in ("package", "again")]
    assert packed[0].read_bytes() == packed[1].read_bytes()
    assert packed[0].read_bytes() == (tmp_path / "stored" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "target", "dtype", "bound"),
    [
        ("autogptq-int4", "tensorrt", "float16", 0.03),
        ("autogptq-int8-act-order", "tensorrt", "float16", 0.03),
        ("autogptq-int8-act-order", "portable", "float32", MAX_ABS_ERROR),
        ("gptqmodel-moe", "portable", "float32", MAX_ABS_ERROR),
    ],
)
def test_graphs_of_other_targets(name: str, target: str, dtype: str, bound: float, tmp_path: Path) -> None:
    """ONNX Runtime runs them, too, as functions where it has no kernel."""
    weights = load_file(FIXTURES / "dequantized" / f"{name}.safetensors")
    oracle = load_model(write_dequantized(tmp_path / "dequantized", FIXTURES / name, weights))
    result = q2export.export(FIXTURES / name, tmp_path / "onnx", target=target, dtype=dtype, weights="copy")
    engine = result.manifest.engine
    shape = (1, engine.num_key_value_heads, len(TOKENS), engine.head_dim)
    past = {f"past_{kind}.0": np.zeros(shape, dtype) for kind in ("key", "value")}
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(result.onnx, options, providers=["CPUExecutionProvider"])
    feed = {
        "input_ids": np.array([TOKENS]),
        "past_lengths": np.zeros(1, np.int64),
        "query_lengths": np.array([len(TOKENS)]),
        "logits_indices": np.arange(len(TOKENS))[None],
        **past,
    }
    (found,) = session.run(["logits"], feed)
    np.testing.assert_allclose(found[0], reference_logits(oracle, TOKENS), atol=bound, rtol=0)
