"""Errors of layers and weights between two checkpoints, against whole runs and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from q2export.compare.quality.layers import compare_layers
from q2export.exporter.export import load_source
from q2export.exporter.reference import CheckpointReference
from tests.helpers.checkpoints import tiny_config, write_checkpoint

SEQUENCES = [[3, 14, 15, 92, 65], [35, 89]]
DISTURBED, SAME = "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"


def make(folder: Path, model_type: str, disturbed: str | None) -> CheckpointReference:
    """Two layers; the rows of one weight are disturbed by a tenth."""
    write_checkpoint(folder, tiny_config(model_type=model_type))
    if disturbed is not None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        noise = np.random.default_rng(1).standard_normal(weights[disturbed].shape, dtype=np.float32)
        weights[disturbed] = weights[disturbed] + 0.1 * np.abs(weights[disturbed]).mean() * noise
        save_file(weights, file)
    return CheckpointReference(load_source(folder))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen2_moe"])
def test_only_the_disturbed_layer_has_an_error_of_its_own(tmp_path: Path, model_type: str) -> None:
    first, second = "model.layers.0", "model.layers.1"
    reference = make(tmp_path / "a", model_type, None)
    other = make(tmp_path / "b", model_type, DISTURBED)
    seen: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    found = compare_layers(
        reference, other, [DISTURBED, SAME], SEQUENCES, lambda ids, a, b: seen.append((list(ids), a, b))
    )
    errors = found.layers

    stages = ("model.embed_tokens", first, second)
    runs = [each.run(SEQUENCES, stages) for each in (reference, other)]
    streams = [[np.concatenate(run.captures[stage]) for stage in stages] for run in runs]
    (embedded, out0, out1), (_, other0, other1) = streams
    norm = np.linalg.norm
    assert [error.name for error in errors] == [first, second]
    assert errors[0].output_error == pytest.approx(norm(other0 - out0) / norm(out0 - embedded), rel=1e-4)
    assert errors[0].accumulated_error == pytest.approx(norm(other0 - out0) / norm(out0), rel=1e-4)
    assert errors[1].output_error == 0
    assert errors[1].accumulated_error == pytest.approx(norm(other1 - out1) / norm(out1), rel=1e-4)
    assert errors[1].accumulated_error > 0
    before, after = (load_file(tmp_path / name / "model.safetensors")[DISTURBED] for name in "ab")
    assert found.weights == {
        DISTURBED: pytest.approx(norm(after - before) / norm(before), rel=1e-5),
        SAME: 0.0,
    }
    for (ids, a, b), wanted, exact, changed in zip(
        seen, SEQUENCES, runs[0].logits, runs[1].logits, strict=True
    ):
        assert ids == wanted
        np.testing.assert_allclose(a, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(b, changed, rtol=1e-5, atol=1e-5)


def test_a_model_equals_itself(tmp_path: Path) -> None:
    reference = make(tmp_path / "a", "qwen2", None)
    vocabulary = ["lm_head.weight", "model.embed_tokens.weight"]
    found = compare_layers(reference, reference, vocabulary, SEQUENCES, lambda ids, a, b: None)
    assert all(layer.output_error == layer.accumulated_error == 0 for layer in found.layers)
    assert found.weights == dict.fromkeys(vocabulary, 0.0)
