"""Engines for the CPU in other types than float32: bfloat16 activations, KV caches of 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import q2export
from q2export.compare.verify.onnxruntime_probe import OnnxRuntimeProbe
from q2export.errors import ExportError
from tests.helpers.checkpoints import CHECKPOINTS, tiny_config, write_checkpoint

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def test_experts_multiply_rounded_activations_too(tmp_path: Path) -> None:
    """All of them; with rounding off, the same graph is exact: what a build's parity looks at first."""
    checkpoint = CHECKPOINTS / "qwen2-moe-tiny"
    built = q2export.build(checkpoint, tmp_path / "out", profile="cpu-bf16", parity=False)
    nodes = onnx.load(str(built.package / "model.onnx"), load_external_data=False).graph.node
    found = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "Q2MoE"]
    assert found and all(attributes["bfloat16_activations"] == 1 for attributes in found)
    exact = q2export.load(q2export.build(checkpoint, tmp_path / "exact", parity=False).package).score(TOKENS)
    unrounded = OnnxRuntimeProbe(built.package, built.manifest.engine, exact=True).score(TOKENS)
    np.testing.assert_array_equal(unrounded, exact)
    assert np.abs(q2export.load(built.package).score(TOKENS) - exact).max() > 1e-3


def test_bfloat16_activations_are_rounded_and_measured(qwen2_tiny_package: Path, tmp_path: Path) -> None:
    built = q2export.build(CHECKPOINTS / "qwen2-tiny", tmp_path / "out", profile="cpu-bf16")
    parity = built.manifest.parity
    assert parity is not None and parity.passed and parity.max_abs_error > 1e-3
    nodes = onnx.load(str(built.package / "model.onnx"), load_external_data=False).graph.node
    found = {a.i for node in nodes for a in node.attribute if a.name == "bfloat16_activations"}
    assert found == {1}
    exact = q2export.load(qwen2_tiny_package).score(TOKENS)
    rounded = q2export.load(built.package).score(TOKENS)
    assert 1e-3 < np.abs(rounded - exact).max() < 0.2
    unrounded = OnnxRuntimeProbe(built.package, built.manifest.engine, exact=True).score(TOKENS)
    assert np.abs(unrounded - exact).max() < 1e-4


def test_bfloat16_activations_are_for_bfloat16_weights(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config())
    with pytest.raises(ExportError, match=r"activations is 'bfloat16'.*those of the checkpoint are float32"):
        q2export.build(checkpoint, tmp_path / "out", profile="cpu-bf16", parity=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kv_dtype", ["float16", "bfloat16"])
def test_a_cache_of_16_bits(qwen2_tiny_package: Path, tmp_path: Path, kv_dtype: str) -> None:
    overrides = {"kv_dtype": kv_dtype, "parity.max_abs_logit_error": 0.5, "parity.max_kl_divergence": 0.01,
                 "parity.min_cosine_similarity": 0.999, "prefill_chunk": 4, "batch.max": 3}  # fmt: skip
    built = q2export.build(CHECKPOINTS / "qwen2-tiny", tmp_path / "out", overrides=overrides)
    assert built.manifest.engine.kv_dtype == kv_dtype
    engine, exact = q2export.load(built.package), q2export.load(qwen2_tiny_package)
    narrow = engine.score(TOKENS)
    error = np.abs(narrow - exact.score(TOKENS)).max()
    assert 0 < error < (0.02 if kv_dtype == "float16" else 0.2)
    prompts = [TOKENS, TOKENS[:3], TOKENS[2:9]]
    together = engine.generate_batch(prompts, max_new_tokens=6, do_sample=False)
    alone = [engine.generate(prompt, max_new_tokens=6, do_sample=False) for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
