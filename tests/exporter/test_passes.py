"""Each pass: how often it matched, then the numbers; what it must leave alone; the lowerings as a whole."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from q2export import opspec
from q2export.errors import ExportError
from q2export.exporter.check import check_structure
from q2export.exporter.config import ModelConfig, parse_config
from q2export.exporter.emit import assemble
from q2export.exporter.lowering import onnxruntime as onnxruntime_lowering
from q2export.exporter.lowering import tensorrt as tensorrt_lowering
from q2export.exporter.ops.functions import function_for
from q2export.exporter.passes.base import Pass, PassResult, nodes_of, run_passes
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.inline_functions import InlineFunctions
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.ort_attention import LowerAttentionToOnnxRuntime
from q2export.exporter.passes.ort_silu import FuseSilu
from q2export.exporter.passes.ort_skip_norm import FuseSkipNormalization
from q2export.exporter.passes.remove_unused import RemoveUnused
from q2export.exporter.trace import TracedDecoder, trace
from tests.helpers.checkpoints import random_weights, tiny_config

Array = npt.NDArray[np.generic]


def parse(text: str, functions: tuple[opspec.OpSpec, ...] = ()) -> ir.Model:
    """A model from the text of its graph."""
    header = '<ir_version: 11, opset_import: ["" : 23, "q2export" : 1, "com.microsoft" : 1]>\n'
    proto = onnx.parser.parse_model(header + text)
    proto.functions.extend(function_for(spec) for spec in functions)
    proto = onnx.shape_inference.infer_shapes(proto)
    return ir.from_proto(proto)


def run(model: ir.Model | onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feed))
    return outputs


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check_same(before: list[Array], after: list[Array], bound: float = 1e-6) -> None:
    assert len(before) == len(after)
    for expected, actual in zip(before, after, strict=True):
        assert expected.shape == actual.shape
        assert np.abs(expected - actual).max() <= bound


# MergeReshapes


def test_merge_reshapes_between_two_layers() -> None:
    model = parse("""g (float[tokens,6] x, int64[3] shape) => (float[a,b] y) {
        "layer/rows" = Neg (x)
        layer = Reshape ("layer/rows", shape)
        flat = Constant <value_ints = [-1, 6]> ()
        "next/rows" = Reshape (layer, flat)
        y = Abs ("next/rows") }""")
    for node in model.graph:
        for value in node.outputs:
            value.shape = value.shape or ir.Shape(["t", 6])
    feed = {"x": normal(6, 6), "shape": np.array([2, 3, 6])}
    before = run(model, feed)
    assert MergeReshapes()(model).matched == 1
    assert "Reshape" not in op_types(model)
    check_same(before, run(model, feed))
    assert nodes_of(model.graph, "Neg")[0].outputs[0].name == "layer"  # the path of the module


def test_merge_reshapes_keeps_what_else_is_read() -> None:
    """The value between is read elsewhere and stays; the second reshape no longer waits for it."""
    model = parse("""g (float[a,b,4] x) => (float[c,2] y, float[d,4] z) {
        first = Constant <value_ints = [-1, 4]> ()
        rows = Reshape (x, first)
        second = Constant <value_ints = [-1, 2]> ()
        y = Reshape (rows, second)
        z = Neg (rows) }""")
    feed = {"x": normal(2, 3, 4)}
    before = run(model, feed)
    assert MergeReshapes()(model).matched == 1
    assert Counter(op_types(model))["Reshape"] == 2
    assert nodes_of(model.graph, "Reshape")[1].inputs[0].name == "x"
    check_same(before, run(model, feed))


@pytest.mark.parametrize(("attribute", "refused"), [("", 1), ("<allowzero = 1>", 0)])
def test_merge_reshapes_refuses_copied_sizes(attribute: str, refused: int) -> None:
    """A zero means "as in the input", which would then be another one."""
    model = parse(f"""g (float[2,3,4] x) => (float y)
        <int64[2] rows = {{6, 4}}, int64[3] again = {{0, 2, 2}}> {{
        between = Reshape (x, rows)
        ["outer"] y = Reshape {attribute} (between, again) }}""")
    result = MergeReshapes()(model)
    assert (result.matched, len(result.refused)) == (1 - refused, refused)
    if refused:
        assert result.refused == ["outer: its shape copies sizes of its input"]
        assert run(model, {"x": normal(2, 3, 4)})[0].shape == (6, 2, 2)


# FuseRotaryAttention

ATTENTION_GRAPH = """g (float[B,S,4,16] q, float[B,S,2,16] k, float[B,S,2,16] v, int64[B,S] positions,
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


def lowered_attention(max_positions: int = 32) -> ir.Model:
    model = attention_model()
    run_passes(model, [FuseRotaryAttention()])
    result = LowerAttentionToOnnxRuntime(max_positions)(model)
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
    check_same([before[0]], [after[0]])
    check_same([array[:, :, :valid] for array in before[1:]], [array[:, :, :valid] for array in after[1:]])


def test_lower_attention_tables() -> None:
    model = lowered_attention(max_positions=50)
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
        LowerAttentionToOnnxRuntime(32)(attention_model())


def test_lower_attention_leaves_other_head_sizes() -> None:
    model = attention_model(head_dim="24")
    FuseRotaryAttention()(model)
    result = LowerAttentionToOnnxRuntime(32)(model)
    assert result.matched == 0
    assert result.refused == ["layer.attention/Q2RotaryAttention: head_dim 24 is not a multiple of 16"]
    assert "Q2RotaryAttention" in op_types(model)


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
        LowerAttentionToOnnxRuntime(config.context_length)(model)


# Small fusions


def test_fuse_silu() -> None:
    """``x * sigmoid(x)`` either way round; a gate on something else, or a sigmoid read twice, stays."""
    model = parse("""g (float[3,4] x, float[3,4] g)
        => (float[3,4] a, float[3,4] b, float[3,4] c, float[3,4] d) {
        s0 = Sigmoid (x)  ["first"] a = Mul (x, s0)
        s1 = Sigmoid (g)  ["second"] b = Mul (s1, g)
        s2 = Sigmoid (x)  c = Mul (s2, g)
        s3 = Sigmoid (g)  e = Mul (s3, g)  d = Add (e, s3) }""")
    feed = {"x": 3 * normal(3, 4), "g": 3 * normal(3, 4, seed=1)}
    before = run(model, feed)
    assert FuseSilu()(model).matched == 2
    assert Counter(op_types(model)) == {"QuickGelu": 2, "Sigmoid": 2, "Mul": 2, "Add": 1}
    check_same(before, run(model, feed))


def test_fuse_skip_normalization() -> None:
    """The sum is still there for the residual stream; a broadcasting sum is left alone, with the reason."""
    model = parse("""g (float[n,8] x, float[n,8] y, float[8] row)
        => (float[n,8] a, float[n,8] b, float[n,8] c)
        <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
        sum = Add (x, y)
        ["layer.norm/RMSNormalization"] a = RMSNormalization <axis = -1, epsilon = 0.01> (sum, w)
        b = Neg (sum)
        shifted = Add (x, row)
        ["other/RMSNormalization"] c = RMSNormalization <axis = -1, epsilon = 0.01> (shifted, w) }""")
    for name in ("sum", "shifted"):
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        value.shape, value.type = ir.Shape(["n", 8]), ir.TensorType(ir.DataType.FLOAT)
    feed = {"x": normal(3, 8), "y": normal(3, 8, seed=1), "row": normal(8, seed=2)}
    before = run(model, feed)
    result = FuseSkipNormalization()(model)
    assert result.matched == 1
    assert result.refused == ["other/RMSNormalization: the sum broadcasts or its shapes are unknown"]
    assert Counter(op_types(model)) == {
        "SkipSimplifiedLayerNormalization": 1,
        "Neg": 1,
        "Add": 1,
        "RMSNormalization": 1,
    }
    check_same(before, run(model, feed))


def test_remove_unused() -> None:
    model = parse("""g (float[2] x, float[2] unread) => (float[2] y)
        <float[2] w = {1, 2}, float[2] dead = {3, 4}> {
        y = Add (x, w)  a = Add (x, dead)  b = Neg (a) }""")
    assert RemoveUnused()(model).matched == 2
    assert op_types(model) == ["Add"]
    assert list(model.graph.initializers) == ["w"]
    assert [value.name for value in model.graph.inputs] == ["x", "unread"]


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


# The base class


def test_postcondition_is_checked() -> None:
    class Nothing(Pass):
        def rewrite(self, model: ir.Model, result: PassResult) -> None:
            result.refused.append("n: no reason")

        def ensures(self, model: ir.Model) -> None:
            raise ExportError("not done")

    with pytest.raises(ExportError, match=r"^not done; n: no reason$"):
        Nothing()(attention_model())


# Whole lowerings

CONFIGS: dict[str, dict[str, object]] = {
    "dense": {"num_hidden_layers": 3, "head_dim": 16, "tie_word_embeddings": True},
    "moe": {"model_type": "qwen2_moe", "num_hidden_layers": 3, "head_dim": 16, "mlp_only_layers": [1]},
    "small-heads": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
}


@functools.cache
def traced(name: str) -> TracedDecoder:
    import torch

    return trace(parse_config(tiny_config(**CONFIGS[name]), name), torch.float32)


def tiny(name: str) -> tuple[ModelConfig, ir.Model]:
    """The canonical graph with its weights inside."""
    data = tiny_config(**CONFIGS[name])
    config = parse_config(data, name)
    model = assemble(config, traced(name), "float32")
    for parameter, array in random_weights(data).items():
        model.graph.initializers[parameter].const_value = ir.tensor(array, name=parameter)
    return config, model


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
    "dense": {"FuseRotaryAttention": 3, "LowerAttentionToOnnxRuntime": 3, "MergeReshapes": 12,
              "InlineFunctions": 0, "FuseSilu": 3, "FuseSkipNormalization": 5},
    "moe": {"FuseRotaryAttention": 3, "LowerAttentionToOnnxRuntime": 3, "MergeReshapes": 12,
            "InlineFunctions": 2, "FuseSilu": 1 + 2 * 7, "FuseSkipNormalization": 5},
    "small-heads": {"FuseRotaryAttention": 2, "LowerAttentionToOnnxRuntime": 0, "MergeReshapes": 0,
                    "InlineFunctions": 2, "FuseSilu": 2, "FuseSkipNormalization": 3},
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
        assert np.abs(before[0]).max() > 3
        check_same(before[:1], after[:1], 2e-5)
        for row, total in enumerate(totals):
            valid = [[array[row, :, :total] for array in arrays[1:]] for arrays in (before, after)]
            check_same(*valid, bound=2e-5)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_tensorrt_lowering(name: str) -> None:
    config, canonical = tiny(name)
    proto = ir.to_proto(canonical)
    results = run_passes(canonical, tensorrt_lowering.passes())
    assert (results[0].name, results[0].matched) == ("FuseRotaryAttention", 3)
    custom = Counter(node.op_type for node in canonical.graph if node.domain == opspec.DOMAIN)
    assert custom == {"Q2RotaryAttention": 3} | ({"Q2MoE": 2} if name == "moe" else {})
    lowered = ir.to_proto(canonical)
    check_structure(lowered)
    feed = step(config)
    check_same(run(proto, feed), run(lowered, feed), 2e-5)
