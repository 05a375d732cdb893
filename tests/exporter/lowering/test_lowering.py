"""The lowerings as a whole: what each pass matched, that nothing custom is left, and the numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.exporter.graph.check import check_structure
from q2export.exporter.graph.emit import emit
from q2export.exporter.lowering import onnxruntime as onnxruntime_lowering
from q2export.exporter.lowering import tensorrt as tensorrt_lowering
from q2export.exporter.passes.base import nodes_of, run_passes
from q2export.exporter.passes.clean import clean
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.onnxruntime.lower_attention import LowerAttention
from tests.helpers.checkpoints import random_weights, tiny_config
from tests.helpers.onnx_graphs import Array, check_same, fill, run

CONFIGS: dict[str, dict[str, object]] = {
    "dense": {"num_hidden_layers": 3, "head_dim": 16, "tie_word_embeddings": True},
    "moe": {"model_type": "qwen2_moe", "num_hidden_layers": 3, "head_dim": 16, "mlp_only_layers": [1]},
    "small-heads": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
}


def tiny(name: str) -> tuple[ModelConfig, ir.Model]:
    """The canonical graph with its weights inside."""
    data = tiny_config(**CONFIGS[name])
    config = parse_config(data, name)
    return config, fill(clean(emit(config, "float32")), random_weights(data))


def step(config: ModelConfig, past: int = 0) -> dict[str, Array]:
    """A ragged prefill, or single tokens on top of a past: what the attention kernel takes in a batch."""
    rng = np.random.default_rng(0)
    sequence = 1 if past else 5
    cache = (2, config.num_key_value_heads, 12, config.head_dim)
    feed: dict[str, Array] = {
        "input_ids": rng.integers(0, 131, (2, sequence)),
        "past_lengths": np.array([past, past // 2]),
        "query_lengths": np.array([1, 1] if past else [3, 5]),
        "logits_indices": np.array([[0], [0]] if past else [[2], [4]]),
    }
    for layer in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            feed[f"past_{kind}.{layer}"] = rng.standard_normal(cache, dtype=np.float32)
    return feed


ORT_COUNTS = {
    "dense": {"FuseRotaryAttention": 3, "LowerAttention": 3, "MergeReshapes": 12,
              "InlineFunctions": 0, "FuseSilu": 3},
    "moe": {"FuseRotaryAttention": 3, "LowerAttention": 3, "MergeReshapes": 12,
            "InlineFunctions": 2, "FuseSilu": 1 + 2 * 7},
    "small-heads": {"FuseRotaryAttention": 2, "LowerAttention": 0, "MergeReshapes": 0,
                    "InlineFunctions": 2, "FuseSilu": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_lowering(name: str) -> None:
    config, canonical = tiny(name)
    proto = ir.to_proto(canonical)
    results = run_passes(canonical, onnxruntime_lowering.passes(config.context_length))
    counts = {result.name: result.matched for result in results}
    assert {pass_name: counts[pass_name] for pass_name in ORT_COUNTS[name]} == ORT_COUNTS[name]
    assert not any(node.domain == opspec.DOMAIN for node in canonical.graph)
    assert not canonical.functions
    assert opspec.DOMAIN not in canonical.graph.opset_imports
    read = {value for node in canonical.graph for value in node.inputs}
    assert all(value in read for value in canonical.graph.initializers.values())
    lowered = ir.to_proto(canonical)
    check_structure(lowered)
    for past in (0, 6):
        feed = step(config, past)
        totals = feed["past_lengths"] + feed["query_lengths"]
        before, after = run(proto, feed), run(lowered, feed)
        assert np.abs(before["logits"]).max() > 3
        for arrays in (before, after):
            for row, total in enumerate(totals):
                for name, array in arrays.items():
                    array[row, :, total if name != "logits" else 131 :] = 0  # unspecified
        check_same(before, after, 2e-5)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_tensorrt_lowering(name: str) -> None:
    config, canonical = tiny(name)
    proto = ir.to_proto(canonical)
    results = run_passes(canonical, tensorrt_lowering.passes({}, ir.DataType.FLOAT))
    assert (results[0].name, results[0].matched) == ("FuseRotaryAttention", 3)
    custom = Counter(node.op_type for node in canonical.graph if node.domain == opspec.DOMAIN)
    assert custom == {"Q2RotaryAttention": 3} | ({"Q2MoE": 2} if name == "moe" else {})
    lowered = ir.to_proto(canonical)
    check_structure(lowered)
    feed = step(config)
    check_same(run(proto, feed), run(lowered, feed), 2e-5)


def test_lower_attention_refuses_layers_that_rotate_differently() -> None:
    """The tables are shared by all layers."""
    config, model = tiny("dense")
    FuseRotaryAttention()(model)
    last = nodes_of(model.graph, "Q2RotaryAttention", opspec.DOMAIN)[-1]
    last.attributes["attention_factor"] = ir.AttrFloat32("attention_factor", 1.5)
    message = (
        "model.layers.2.*: other lengths, frequencies or attention factor than model.layers.0.self_attn.att"
    )
    with pytest.raises(ExportError, match=message):
        LowerAttention(config.context_length)(model)
