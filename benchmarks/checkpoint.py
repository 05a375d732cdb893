"""Checkpoints to measure on: random bfloat16 weights from a seed, or sparse files of zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.case import CASES, CaseError, ModelSpec
from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.parameters import EMBEDDING, expected_parameters
from tests.helpers.checkpoints import header_bytes, make_header, write_json, write_sparse_checkpoint

_BLOCK = 1 << 22  # values generated at once
_LOGIT_STD = 2.0  # of a tied head, whose input has unit variance
END_OF_TEXT = "<|endoftext|>"


def make_checkpoint(spec: ModelSpec, folder: Path) -> Path:
    """Write the checkpoint into ``folder`` unless it is there already.

    Raises:
        CaseError: there is no such model file.
    """
    path = CASES / "models" / f"{spec.config}.json"
    if not path.is_file():
        raise CaseError(f"there is no model {spec.config!r} in {path.parent}")
    config = json.loads(path.read_text())
    complete = folder / ".complete"
    if complete.is_file() and complete.read_text() == json.dumps(config):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if spec.weights == "sparse":
        write_sparse_checkpoint(folder, config)
    else:
        write_random_checkpoint(folder, config)
    write_tokenizer(folder)
    complete.write_text(json.dumps(config))
    return folder


def write_random_checkpoint(folder: Path, config: Mapping[str, object], seed: int = 0) -> None:
    """Write ``config.json`` and one bfloat16 ``model.safetensors``.

    Matrices are uniform with the variance 1 / fan-in, so that activations keep their scale; norm weights are
    near 1, biases small, and the embedding is scaled for logits of order 5.
    """
    write_json(folder / "config.json", dict(config))
    parameters = list(expected_parameters(parse_config(config, "benchmark model")).items())
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_bytes(make_header(parameters, "BF16")))
        for name, shape in parameters:
            if name.endswith("norm.weight"):
                _write_uniform(file, rng, math.prod(shape), center=1.0, deviation=0.1)
            elif len(shape) == 1:
                _write_uniform(file, rng, math.prod(shape), center=0.0, deviation=0.02)
            else:
                gain = _LOGIT_STD if name in (EMBEDDING, "lm_head.weight") else 1.0
                _write_uniform(file, rng, math.prod(shape), center=0.0, deviation=gain / math.sqrt(shape[-1]))


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer of 257 tokens, for builders that insist on one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": 32768},
    )


def _write_uniform(
    file: BinaryIO, rng: np.random.Generator, count: int, *, center: float, deviation: float
) -> None:
    """Write ``count`` bfloat16 values of the given mean and standard deviation."""
    width = np.float32(2 * deviation * math.sqrt(3))
    for start in range(0, count, _BLOCK):
        values = (
            rng.random(min(_BLOCK, count - start), dtype=np.float32) - np.float32(0.5)
        ) * width + np.float32(center)
        (values.view(np.uint32) >> 16).astype(np.uint16).tofile(file)
