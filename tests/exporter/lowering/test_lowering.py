"""The lowerings as a whole: what each pass matched, that nothing custom is left, and the numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from q2export.contracts import opspec
from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.exporter.graph.check import check_structure
from q2export.exporter.graph.emit import emit
from q2export.exporter.lowering import onnxruntime as onnxruntime_lowering
from q2export.exporter.lowering import tensorrt as tensorrt_lowering
from q2export.exporter.passes.base import run_passes
from q2export.exporter.passes.clean import clean
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
    """A ragged prefill, on top of nothing or of a ragged past."""
    rng = np.random.default_rng(0)
    sequence = 5
    cache = (2, config.num_key_value_heads, 12, config.head_dim)
    feed: dict[str, Array] = {
        "input_ids": rng.integers(0, 131, (2, sequence)),
        "past_lengths": np.array([past, past // 2]),
        "query_lengths": np.array([3, 5]),
        "logits_indices": np.array([[2], [4]]),
    }
    for layer in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            feed[f"past_{kind}.{layer}"] = rng.standard_normal(cache, dtype=np.float32)
    return feed


ORT_COUNTS = {
    "dense": {"FuseRotaryAttention": 3, "FuseSwiGLU": 3, "LowerLinear": 23},
    "moe": {"FuseRotaryAttention": 3, "FuseSwiGLU": 3, "LowerLinear": 29},
    "small-heads": {"FuseRotaryAttention": 2, "FuseSwiGLU": 2, "LowerLinear": 16},
}  # fmt: skip


@pytest.mark.parametrize("library", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_lowering(name: str, library: bool) -> None:
    config, canonical = tiny(name)
    proto = ir.to_proto(canonical)
    weights = {one: "float32" for one in canonical.graph.initializers if one.endswith(".weight")}
    for value in canonical.graph.initializers.values():
        value.const_value, value.meta["data"] = None, value.const_value
    results = run_passes(canonical, onnxruntime_lowering.passes({}, dtypes=weights))
    for value in canonical.graph.initializers.values():
        value.const_value = value.meta.pop("data", value.const_value)
    counts = {result.name: result.matched for result in results}
    assert {pass_name: counts[pass_name] for pass_name in ORT_COUNTS[name]} == ORT_COUNTS[name]
    ours = {node.op_type for node in canonical.graph if node.domain == opspec.DOMAIN}
    assert ours == {"Q2RotaryAttention", "Q2Linear", "Q2SwiGLU"} | ({"Q2MoE"} if name == "moe" else set())
    read = {value for node in canonical.graph for value in node.inputs}
    assert all(value in read for value in canonical.graph.initializers.values())
    lowered = ir.to_proto(canonical)
    check_structure(lowered)
    for past in (0, 6):
        feed = step(config, past)
        totals = feed["past_lengths"] + feed["query_lengths"]
        before, after = run(proto, feed), run(lowered, feed, with_kernels=library)
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
