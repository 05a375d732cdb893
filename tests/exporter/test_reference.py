"""The PyTorch reference of parity against transformers: logits, every intermediate point, bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import PreTrainedModel

from q2export.exporter.export import load_source
from q2export.exporter.reference import CheckpointReference
from tests.helpers.checkpoints import tiny_config, write_checkpoint, write_sparse_checkpoint
from tests.helpers.transformers_models import load_model, reference_logits

Float32Array = npt.NDArray[np.float32]

BOUND = 2e-5
CONFIGS: dict[str, dict[str, object]] = {
    "dense-yarn-tied": {
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
    "moe": {"model_type": "qwen2_moe", "num_hidden_layers": 3, "mlp_only_layers": [1]},
    "moe-norm": {"model_type": "qwen2_moe", "norm_topk_prob": True, "qkv_bias": False},
    "window": {
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
}


def tokens(seed: int, count: int, vocab: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


@pytest.mark.parametrize(("dtype", "shards"), [("F32", 1), ("BF16", 3), ("F16", 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(tmp_path: Path, name: str, dtype: str, shards: int) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_config(**CONFIGS[name]), dtype=dtype, shards=shards)
    model = load_model(folder)
    sequences = [tokens(0, 19), tokens(1, 1), tokens(2, 6)]
    run = CheckpointReference(load_source(folder)).run(sequences)
    assert run.captures == {}
    assert len(run.logits) == 3
    for sequence, logits in zip(sequences, run.logits, strict=True):
        expected = reference_logits(model, sequence)
        assert np.abs(expected).max() > 2
        assert np.abs(logits - expected).max() <= BOUND


# The reference of the captures: forward hooks on transformers' modules, which have the same paths.


def hooked(model: PreTrainedModel, names: Sequence[str], sequence: Sequence[int]) -> dict[str, Float32Array]:
    found: dict[str, Float32Array] = {}

    def keep(name: str, value: object) -> None:
        tensor = value if isinstance(value, torch.Tensor) else value[0]  # type: ignore[index]
        found[name] = tensor.detach().reshape(len(sequence), -1).numpy().copy()

    hooks = []
    for name in names:
        if name.endswith(".attention"):  # transformers has no module for it: what o_proj reads
            module = model.get_submodule(name.replace(".attention", ".o_proj"))
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: keep(name, args)))
        else:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
    reference_logits(model, sequence)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_captures(tmp_path: Path, name: str) -> None:
    """Every point of the parity contract (``q2export/compare/verify/activations.py``)."""
    config = tiny_config(**CONFIGS[name])
    folder = write_checkpoint(tmp_path / "c", config)
    source = load_source(folder)
    inner = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    inner += ["self_attn.attention", "self_attn.o_proj", "post_attention_layernorm", "mlp"]
    points = ["model.embed_tokens", "model.norm", "lm_head"]
    for layer in range(source.config.num_hidden_layers):
        points += [f"model.layers.{layer}.{point}" for point in inner] + [f"model.layers.{layer}"]
        points += [f"model.layers.{layer}.mlp.gate"] if source.config.is_moe_layer(layer) else []
    sequences = [tokens(3, 9), tokens(4, 1)]
    run = CheckpointReference(source).run(sequences, points)
    assert run.captures.keys() == set(points)
    model = load_model(folder)
    for index, sequence in enumerate(sequences):
        expected = hooked(model, points, sequence)
        for point in points:
            actual = run.captures[point][index]
            if point.endswith("mlp.gate"):
                # transformers' router module may return probabilities: compare what they say
                expected[point] = router_logits(model, point, expected)
            assert actual.dtype == np.float32
            assert actual.shape == expected[point].shape, point
            assert np.abs(actual - expected[point]).max() <= BOUND, point


def router_logits(model: PreTrainedModel, point: str, found: dict[str, Float32Array]) -> Float32Array:
    normed = torch.from_numpy(found[point.replace("mlp.gate", "post_attention_layernorm")])
    logits: Float32Array = (normed @ model.get_submodule(point).weight.detach().T).numpy()
    return logits


def test_only_what_is_asked_for_is_captured(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_config())
    run = CheckpointReference(load_source(folder)).run([[1, 2]], ["model.layers.1"])
    assert run.captures.keys() == {"model.layers.1"}
    assert run.captures["model.layers.1"][0].shape == (2, 56)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_head_in_slices_that_cut_rows(tmp_path: Path, dtype: str) -> None:
    """A vocabulary of several blocks whose borders lie within rows."""
    config = tiny_config(vocab_size=90_001, hidden_size=54, num_attention_heads=9, num_key_value_heads=3)
    folder = write_checkpoint(tmp_path / "c", config, dtype=dtype)
    assert 90_001 * 54 * {"F32": 4, "BF16": 2}[dtype] > 8 << 20
    sequence = [0, 90_000, 45_000]
    (logits,) = CheckpointReference(load_source(folder)).run([sequence]).logits
    assert np.abs(logits - reference_logits(load_model(folder), sequence)).max() <= BOUND


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    config = tiny_config(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8, vocab_size=40_000
    )
    source = load_source(write_sparse_checkpoint(tmp_path / "c", config))
    layer = 4 * (512 * (2 * 512 + 2 * 128) + 3 * 512 * 2048)
    tracemalloc.start()
    CheckpointReference(source).run([[1, 2, 3]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    head = 4 * 40_000 * 512  # in float32; must never be whole either
    assert peak < layer + (64 << 20) < (6 * layer + head) / 2  # a layer, and some blocks of 8 MiB
