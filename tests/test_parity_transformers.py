"""Engines built for ONNX Runtime against transformers: checkpoint -> package -> logits and greedy tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

import q2export
from q2export.runtime.engine import Engine
from tests.helpers.checkpoints import tiny_config, write_checkpoint
from tests.helpers.transformers_models import (
    load_model,
    reference_greedy,
    reference_logits,
    write_with_transformers,
)

MAX_ABS_ERROR = 1e-4
LOGIT_SCALE = 3.0  # of the largest logit: an error of 1e-4 is then small
CHUNK = 7  # tokens per prefill step: prompts below cross several borders
GREEDY_TOKENS = 64
MARGIN = 2 * MAX_ABS_ERROR  # by which the oracle prefers each of its choices, or identity would be luck

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MOE: dict[str, object] = {"model_type": "qwen2_moe"}
CONFIGS: dict[str, dict[str, object]] = {
    "tied-group7": {"tie_word_embeddings": True, "head_dim": 16},
    "untied-group1-d64": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64},
    "group2-derived-d64": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2},
    "group8-d128-wider-than-hidden": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128},
    "group6-yarn-tied": {
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_scaling": YARN,
        "tie_word_embeddings": True,
    },
    "yarn-attention-factor-not-truncated": {
        "head_dim": 32,
        "rope_theta": 10000.0,
        "rope_scaling": {**YARN, "attention_factor": 1.3, "truncate": False, "beta_fast": 8},
    },
    "yarn-at-theta-1e4": {"head_dim": 64, "rope_theta": 10000.0, "rope_scaling": {**YARN, "factor": 2.5}},
    "linear-rope": {"head_dim": 16, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "window-max-window-layers": {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "window-layer-types": {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "function-body-attention-d12": {
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "rope_scaling": YARN,
    },
    "moe": {**MOE, "head_dim": 16},
    "moe-norm-tied-group1": {
        **MOE,
        "head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
    },
    "moe-sparse-step2-yarn": {
        **MOE,
        "head_dim": 64,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "rope_scaling": YARN,
    },
    "moe-mlp-only-no-bias": {
        **MOE,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "qkv_bias": False,
        "norm_topk_prob": True,
    },
    "moe-window": {
        **MOE,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
    },
    "moe-all-experts": {**MOE, "head_dim": 16, "num_experts": 5, "num_experts_per_tok": 5},
}
STORED = {"moe-norm-tied-group1": "BF16", "yarn-at-theta-1e4": "BF16", "moe": "F32", "linear-rope": "F16"}
SHARDS = {"moe-sparse-step2-yarn": 3, "yarn-at-theta-1e4": 2}
SAVED_BY_TRANSFORMERS = {"window-layer-types", "moe-mlp-only-no-bias", "group6-yarn-tied"}


@dataclass(frozen=True)
class Pair:
    """One checkpoint as an engine and as the oracle."""

    name: str
    engine: Engine
    model: PreTrainedModel


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    name = request.param
    folder: Path = tmp_path_factory.mktemp(name)
    config = tiny_config(**CONFIGS[name])
    if name in SAVED_BY_TRANSFORMERS:
        write_with_transformers(folder / "checkpoint", config)
    else:
        write_checkpoint(
            folder / "checkpoint", config, dtype=STORED.get(name, "F32"), shards=SHARDS.get(name, 1)
        )
    result = q2export.build(
        folder / "checkpoint",
        folder / "package",
        parity=False,
        overrides={"prefill_chunk": CHUNK, "threads": 1},
    )
    weights, of_16_bits = result.manifest.weights, STORED.get(name, "F32") != "F32"
    assert weights.in_place_bytes > 0, "matrices are read in place"
    assert (weights.converted_bytes > 0) == of_16_bits, "vectors of 16 bits are widened"
    yield Pair(name, q2export.load(result.package), load_model(folder / "checkpoint"))


def tokens(seed: int, count: int, vocab: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def test_logits_of_a_prompt_in_chunks(pair: Pair) -> None:
    sequence = tokens(1, 5 * CHUNK + 3)
    expected = reference_logits(pair.model, sequence)
    assert np.abs(expected).max() > LOGIT_SCALE
    actual = pair.engine.score(sequence)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= MAX_ABS_ERROR


def test_ragged_steps(pair: Pair) -> None:
    """A ragged prefill, a ragged chunk on top of it and ragged single tokens, every logit compared."""
    sequences = [tokens(2, 25), tokens(3, 18), tokens(4, 12)]
    steps = [(11, 5, 1), (4, 1, 7), (1, 1, 1), (6, 6, 1), (1, 1, 1), (1, 1, 1), (1, 3, 0)]
    assert [sum(step[row] for step in steps) for row in range(3)] == [25, 18, 12]
    expected = [reference_logits(pair.model, sequence) for sequence in sequences]
    backend = pair.engine.backend
    cache = backend.new_cache(3, 29)
    past = np.zeros(3, np.int64)
    for step in steps:
        rows = sum(length > 0 for length in step)  # a row that has ended comes last and takes no part
        query = np.array(step[:rows], np.int64)
        ids = np.zeros((rows, query.max()), np.int64)
        for row in range(rows):
            ids[row, : query[row]] = sequences[row][past[row] : past[row] + query[row]]
        wanted = np.tile(np.arange(query.max()), (rows, 1))
        logits = backend.forward(cache, ids, past[:rows].copy(), query, wanted)
        for row in range(rows):
            part = expected[row][past[row] : past[row] + query[row]]
            assert np.abs(logits[row, : query[row]] - part).max() <= MAX_ABS_ERROR
        past[:rows] += query
    assert past.tolist() == [25, 18, 12]


def test_greedy_tokens_of_a_ragged_batch(pair: Pair) -> None:
    prompts = [tokens(15, 2 * CHUNK + 2), tokens(16, 1), tokens(17, CHUNK)]
    results = pair.engine.generate_batch(
        prompts, do_sample=False, max_new_tokens=GREEDY_TOKENS, ignore_eos=True
    )
    for prompt, result in zip(prompts, results, strict=True):
        expected, margin = reference_greedy(pair.model, prompt, GREEDY_TOKENS)
        assert margin > MARGIN
        assert list(result.token_ids) == expected
        assert len(expected) == GREEDY_TOKENS
