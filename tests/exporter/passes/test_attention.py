"""Fusing rotation and attention, lowering them to ONNX Runtime, and inlining what is not lowered."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.passes.base import nodes_of, run_passes
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.inline_functions import InlineFunctions
from q2export.exporter.passes.onnxruntime.lower_attention import LowerAttention
from tests.helpers.onnx_graphs import Array, check_same, normal, op_types, parse, run

# FuseRotaryAttention

ATTENTION_GRAPH = """g (int64[B,S] input_ids,
        float[B,S,4,16] q, float[B,S,2,16] k, float[B,S,2,16] v, int64[B,S] positions,
        float[B,2,C,16] past_key, float[B,2,C,16] past_value, int64[B] past_lengths, int64[B] query_lengths)
    => (float[B,S,4,16] output, float[B,2,C,16] present_key, float[B,2,C,16] present_value OUTPUT)
    <float[8] inv_freq = {1, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01, 0.005},
     float[8] other_freq = {1, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01, 0.001}> {
    ["layer.rotary_q"] qr = q2export.Q2RotaryEmbedding
        <attention_factor = 1.25, plugin_version = "1", plugin_namespace = "q2export">
        (q, positions, inv_freq)
    ["layer.rotary_k"] kr = q2export.Q2RotaryEmbedding
        <attention_factor = FACTOR, plugin_version = "1", plugin_namespace = "q2export"> (k, KEYS)
    ["layer.attention/Q2GroupQueryAttention"]
    output, present_key, present_value = q2export.Q2GroupQueryAttention
        <num_heads = 4, num_kv_heads = 2, scale = 0.25, sliding_window = 3,
         plugin_version = "1", plugin_namespace = "q2export">
        (QUERY, kr, v, past_key, past_value, past_lengths, query_lengths)
    EXTRA }"""


def attention_model(
    factor: str = "1.25",
    keys: str = "positions, inv_freq",
    query: str = "qr",
    output: str = "",
    extra: str = "",
    head_dim: str = "16",
) -> ir.Model:
    text = ATTENTION_GRAPH.replace("FACTOR", factor).replace("KEYS", keys)
    text = text.replace("QUERY", query).replace("OUTPUT", output).replace("EXTRA", extra)
    text = text.replace("16]", f"{head_dim}]")
    return parse(text, (opspec.ROTARY, opspec.ATTENTION))


def attention_feed(past: int, positions: bool = True) -> dict[str, Array]:
    feed = {
        "input_ids": np.zeros((1, 3), np.int64),  # their shape is what counts
        "q": normal(1, 3, 4, 16, seed=1),
        "k": normal(1, 3, 2, 16, seed=2),
        "v": normal(1, 3, 2, 16, seed=3),
        "past_key": normal(1, 2, 9, 16, seed=4),
        "past_value": normal(1, 2, 9, 16, seed=5),
        "past_lengths": np.array([past]),
        "query_lengths": np.array([3]),
    }
    return feed | ({"positions": past + np.arange(3)[None]} if positions else {})


def test_fuse_rotary_attention() -> None:
    model = attention_model()
    before = run(model, attention_feed(5))
    assert FuseRotaryAttention()(model).matched == 1
    assert op_types(model) == ["Q2RotaryAttention"]
    check_same(before, run(model, attention_feed(5)))
    (node,) = model.graph
    assert node.name == "layer.attention/Q2RotaryAttention"
    assert set(node.attributes) == {
        *opspec.ROTARY_ATTENTION.attribute_names(),
        "plugin_version",
        "plugin_namespace",
    }
    assert [value.name for value in node.inputs][-1] == "inv_freq"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"factor": "1.5"}, "query and key are rotated with different attention factors"),
        ({"keys": "positions, other_freq"}, "query and key are rotated by different positions or freq"),
        ({"keys": "past_lengths_2d, inv_freq"}, "query and key are rotated by different positions"),
        ({"query": "q"}, "its query is not rotated"),
        ({"output": ", float[B,S,4,16] qr"}, "the rotated query is also read elsewhere"),
        (
            {"output": ", float[B,S,2,16] z", "extra": "z = Neg (kr)"},
            "the rotated key is also read elsewhere",
        ),
    ],
)
def test_fuse_rotary_attention_refusals(changes: dict[str, str], reason: str) -> None:
    """A rotation that stays behind could not be lowered: refused with the place and the reason."""
    if "past_lengths_2d" in changes.get("keys", ""):
        model = attention_model()
        graph = model.graph
        other = ir.Value(name="p2", shape=ir.Shape(["B", "S"]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(other)
        nodes_of(graph, "Q2RotaryEmbedding", opspec.DOMAIN)[1].replace_input_with(1, other)
    else:
        model = attention_model(**changes)
    message = rf"^layer\.rotary_.: a rotation .* layer\.attention/Q2GroupQueryAttention: {reason}"
    with pytest.raises(ExportError, match=message):
        FuseRotaryAttention()(model)
    assert "Q2GroupQueryAttention" in op_types(model)


# Lowering of attention to ONNX Runtime


def lowered_attention(max_capacity: int = 32) -> ir.Model:
    model = attention_model()
    run_passes(model, [FuseRotaryAttention()])
    result = LowerAttention(max_capacity)(model)
    assert (result.matched, result.refused) == (1, [])
    return model


@pytest.mark.parametrize("past", [0, 1, 6])
def test_lower_attention(past: int) -> None:
    """One row, several tokens on top of a past, a window that cuts."""
    model = lowered_attention()
    assert not nodes_of(model.graph, "Q2RotaryAttention", opspec.DOMAIN)
    assert len(nodes_of(model.graph, "GroupQueryAttention", "com.microsoft")) == 1
    before = run(attention_model(), attention_feed(past))
    after = run(model, attention_feed(past))
    valid = past + 3
    check_same({"output": before["output"]}, {"output": after["output"]})
    for name in ("present_key", "present_value"):
        assert np.abs(before[name][:, :, :valid] - after[name][:, :, :valid]).max() < 1e-6


def test_lower_attention_tables() -> None:
    model = lowered_attention(max_capacity=50)
    initializers = model.graph.initializers
    cos, sin = (initializers[f"rotary/{name}_cache"].const_value.numpy() for name in ("cos", "sin"))
    inv_freq = initializers["inv_freq"].const_value.numpy()
    angle = np.arange(50)[:, None] * inv_freq.astype(np.float64)
    assert cos.shape == sin.shape == (50, 8)
    assert np.abs(cos - 1.25 * np.cos(angle)).max() < 1e-5
    assert np.abs(sin - 1.25 * np.sin(angle)).max() < 1e-5


def test_lower_attention_needs_the_fused_op() -> None:
    with pytest.raises(
        ExportError, match=r"layer\.attention/Q2GroupQueryAttention: run FuseRotaryAttention first"
    ):
        LowerAttention(32)(attention_model())


def test_lower_attention_leaves_other_head_sizes() -> None:
    model = attention_model(head_dim="24")
    FuseRotaryAttention()(model)
    result = LowerAttention(32)(model)
    assert result.matched == 0
    assert result.refused == ["layer.attention/Q2RotaryAttention: head_dim 24 is not a multiple of 16"]
    assert "Q2RotaryAttention" in op_types(model)


# Inlining


def test_inline_functions_without_a_body() -> None:
    model = attention_model()
    model.functions.clear()
    with pytest.raises(ExportError, match=r"layer\.rotary_q: Q2RotaryEmbedding has no function body"):
        InlineFunctions()(model)


def test_inline_functions_within_functions() -> None:
    model = attention_model()
    before = run(model, attention_feed(4))
    FuseRotaryAttention()(model)
    assert InlineFunctions()(model).matched == 1
    assert not any(node.domain == opspec.DOMAIN for node in model.graph)
    assert not model.functions
    assert opspec.DOMAIN not in model.graph.opset_imports
    check_same(before, run(model, attention_feed(4)))
