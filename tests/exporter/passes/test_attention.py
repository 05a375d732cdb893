"""Fusing rotation and attention, and a cache of another type."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.passes.base import nodes_of, run_passes
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.narrow_cache import NarrowCache
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


# A KV cache of another type


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
def test_narrow_cache(dtype: str) -> None:
    """Attention rounds what it appends, and computes in float32 from what it reads."""
    model, wanted = attention_model(), ir.DataType[dtype]
    exact = run(model, attention_feed(5))
    assert run_passes(model, [FuseRotaryAttention(), NarrowCache(wanted)])[1].matched == 4
    caches = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert [name for name, found in caches.items() if found == wanted] == [
        *("past_key", "past_value"),
        *("present_key", "present_value"),
    ]
    if dtype == "FLOAT16":  # NumPy has no bfloat16
        feed = attention_feed(5)
        narrow = {name: feed[name].astype(np.float16) for name in ("past_key", "past_value")}
        rounded = run(model, {**feed, **narrow})
        assert rounded["present_key"].dtype == np.float16
        assert 0 < np.abs(rounded["output"] - exact["output"]).max() < 2e-3


def test_a_cache_that_something_else_reads_is_refused() -> None:
    model = attention_model(output=", float[B,2,C,16] z", extra="z = Neg (past_key)")
    FuseRotaryAttention()(model)
    with pytest.raises(ExportError, match="Neg reads the KV cache 'past_key'"):
        NarrowCache(ir.DataType.FLOAT16)(model)
