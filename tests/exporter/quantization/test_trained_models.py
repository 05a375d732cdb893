"""What quantizing costs the trained checkpoints on text they have not seen, with every weight quantized.

Text comes from the Python language reference, as they were trained on it; calibration takes the beginning of
what is not held out. Dequantized weights run in float32, so this is the quantizer alone.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from q2export.contracts.quantization import Quantization
from q2export.exporter.checkpoint.source import load_source
from q2export.exporter.quantization.calibrated.quantizer import Calibrated
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.reference import CheckpointReference

NAMES = ("qwen2-tiny", "qwen2-moe-tiny")
WINDOW, CALIBRATION_TOKENS = 512, 4096


def windows(tokens: list[int]) -> list[list[int]]:
    return [tokens[first : first + WINDOW] for first in range(0, len(tokens), WINDOW)]


@dataclass(frozen=True)
class Text:
    """Held-out and calibration text as token ids."""

    held_out: list[list[int]]
    calibration: list[list[int]]


@dataclass(frozen=True)
class Score:
    """Perplexity per token, and KL(unquantized || quantized) in nats per token."""

    perplexity: float
    divergence: float


def read_text(checkpoints: Path, name: str) -> Text:
    spec = importlib.util.spec_from_file_location("checkpoint_train", checkpoints / "train.py")
    assert spec is not None and spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    spec.loader.exec_module(script)
    tokenizer = Tokenizer.from_file(str(checkpoints / name / "tokenizer.json"))
    documents = "\n\n".join(script.training_documents(script.read_topics()))
    held_out = tokenizer.encode("<|endoftext|>" + script.held_out_text()).ids
    return Text(windows(held_out), windows(tokenizer.encode(documents).ids[:CALIBRATION_TOKENS]))


def log_probabilities(folder: Path, text: Text) -> list[torch.Tensor]:
    logits = CheckpointReference(load_source(folder)).run(text.held_out).logits
    return [torch.log_softmax(torch.from_numpy(one), dim=-1) for one in logits]


def score(text: Text, exact: list[torch.Tensor], found: list[torch.Tensor]) -> Score:
    lost, divergence, tokens = 0.0, 0.0, 0
    for window, reference, other in zip(text.held_out, exact, found, strict=True):
        next_tokens = torch.tensor(window[1:])
        lost -= float(other[:-1].gather(1, next_tokens[:, None]).double().sum())
        divergence += float((reference.exp() * (reference - other))[:-1].double().sum())
        tokens += len(next_tokens)
    return Score(math.exp(lost / tokens), divergence / tokens)


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_and_divergence(name: str, checkpoints: Path, tmp_path: Path) -> None:
    source, text = load_source(checkpoints / name), read_text(checkpoints, name)
    exact = log_probabilities(checkpoints / name, text)
    schemes = {
        "int8": Quantization("int8"),
        "int4": Quantization("int4"),
        "gptq": Quantization("int4", method="gptq"),
    }
    scores = {}
    for kind, how in schemes.items():
        quantizer = Calibrated(source, how, text.calibration) if how.method == "gptq" else None
        quantize_checkpoint(source, tmp_path / kind, how, quantizer=quantizer)
        scores[kind] = score(text, exact, log_probabilities(tmp_path / kind, text))
    original = score(text, exact, exact).perplexity
    assert original == pytest.approx({"qwen2-tiny": 47.2, "qwen2-moe-tiny": 49.9}[name], rel=0.01)
    for kind, most in (("int8", 0.005), ("int4", 0.04), ("gptq", 0.02)):
        assert scores[kind].perplexity < original * (1 + most)
    # Perplexity of models this small may even fall; the divergence from the original tells more.
    assert scores["int8"].divergence < 5e-4
    assert scores["int4"].divergence < 0.015
    assert scores["gptq"].divergence < 0.87 * scores["int4"].divergence
    assert np.isfinite([one.divergence for one in scores.values()]).all()
