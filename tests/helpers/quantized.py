"""Small checkpoints with quantized weights, and running the graphs made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from q2export import api
from q2export.contracts.quantization import Quantization
from q2export.exporter.checkpoint.source import Source, load_source
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.reference import CheckpointReference
from q2export.pipeline.results import BuildResult
from q2export.runtime.backends.onnxruntime import open_session, step_inputs
from tests.helpers.checkpoints import tiny_config, write_checkpoint

Float32Array = npt.NDArray[np.float32]

# "in" sizes: 128 and 192 are odd numbers of blocks of 128 and 64; 64 is two blocks of 32.
SIZES: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
MOE: dict[str, object] = {
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
}
MODELS: dict[str, dict[str, object]] = {
    "dense": SIZES,
    "dense-tied": SIZES | {"tie_word_embeddings": True},
    "moe": SIZES | MOE,
    "moe-norm-tied": SIZES | MOE | {"norm_topk_prob": True, "tie_word_embeddings": True},
}
TOKENS = [3, 77, 130, 0, 5, 5, 19, 101, 64, 2, 88]


def write_packed(folder: Path, model: str, quantization: Quantization, dtype: str = "BF16") -> Source:
    """Write a random checkpoint of :data:`MODELS` to ``folder/original``; quantized, to ``folder/stored``."""
    config = tiny_config(**MODELS[model])
    original = load_source(write_checkpoint(folder / "original", config, dtype=dtype))
    quantize_checkpoint(original, folder / "stored", quantization, threads=1)
    return load_source(folder / "stored")


def reference(source: Source, tokens: Sequence[int] = TOKENS) -> Float32Array:
    """Logits of PyTorch over the dequantized weights, ``[tokens, vocab]``."""
    torch.set_num_threads(1)
    return CheckpointReference(source).run([tokens]).logits[0]


def run_export(result: BuildResult, tokens: Sequence[int] = TOKENS) -> Float32Array:
    """Logits of an exported graph in ONNX Runtime, ``[tokens, vocab]``."""
    session = open_session(result.onnx, threads=1)
    feed = step_inputs(result.manifest.engine, tokens, np.arange(len(tokens), dtype=np.int64))
    (logits,) = session.run(["logits"], feed)
    found: Float32Array = logits[0]
    return found


def export(source: Source, output: Path, target: str, **options: object) -> BuildResult:
    """Export for a target; float32 where nothing else is asked for."""
    settings = {"dtype": "float32"} | options if target == "portable" else options
    return api.export(source.folder, output, target=target, **settings)  # type: ignore[arg-type]
