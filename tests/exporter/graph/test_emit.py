"""The canonical graph: stamped layers against the whole model, names, inputs and outputs, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.export import canonical_graph
from q2export.exporter.graph.builder import GraphBuilder
from q2export.exporter.graph.check import check_structure
from q2export.exporter.graph.emit import INV_FREQ, emit
from q2export.exporter.graph.model.decoder import DecoderLayer, Embedding, Head
from q2export.exporter.graph.ops.functions import IR_VERSION, ONNX_OPSET
from q2export.exporter.graph.stamp import stamp
from q2export.exporter.graph.trace import trace
from q2export.exporter.passes.base import run_passes
from q2export.exporter.passes.clean import clean
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.remove_unused import RemoveUnused
from tests.helpers.checkpoints import random_weights, tiny_config
from tests.helpers.onnx_graphs import Array, fill, run

CONFIGS: dict[str, dict[str, object]] = {
    "dense-yarn": {
        "num_hidden_layers": 3,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "moe-mixed-tied": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "tie_word_embeddings": True,
    },
    "windows": {
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 2,
    },
}


def config_of(name: str) -> ModelConfig:
    return parse_config(tiny_config(**CONFIGS[name]), name)


def canonical(name: str, dtype: str = "float32") -> ir.Model:
    """What ``canonical_graph`` returns."""
    return clean(emit(config_of(name), dtype))


# The reference: the same modules as one model, traced and emitted in one piece.


class Whole(nn.Module):
    """Embedding, all layers and head; parameters of the head are below ``head``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        factor = inverse_frequencies(config.rope, config.head_dim)[1]
        self.model = Embedding(config)
        self.model.layers = nn.ModuleList(
            DecoderLayer(config, layer, factor) for layer in range(config.num_hidden_layers)
        )
        self.head = Head(config)

    def forward(
        self,
        input_ids: Tensor,
        past_lengths: Tensor,
        query_lengths: Tensor,
        logits_indices: Tensor,
        inv_freq: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        hidden, position_ids = self.model(input_ids, past_lengths)
        presents = []
        for layer, key, value in zip(self.model.layers, keys, values, strict=True):
            hidden, *present = layer(hidden, position_ids, inv_freq, key, value, past_lengths, query_lengths)
            presents += present
        return self.head(hidden, logits_indices), *presents


def emit_whole(config: ModelConfig, functions: Sequence[ir.Function]) -> ir.Model:
    """Trace :class:`Whole` and emit it through the same emitter, with the inputs of the canonical graph."""
    batch, sequence, capacity, wanted = (Dim(name) for name in ("batch", "sequence", "capacity", "wanted"))
    layers, cache = config.num_hidden_layers, (2, config.num_key_value_heads, 7, config.head_dim)
    with torch.device("meta"):
        module = Whole(config).eval()
        integers = (torch.zeros(2, 3).long(), torch.zeros(2).long(), torch.ones(2).long())
        indices, inv_freq = torch.zeros(2, 5).long(), torch.zeros(config.head_dim // 2)
        caches = [[torch.zeros(cache) for _ in range(layers)] for _ in range(2)]
    cache_dims = [{0: batch, 2: capacity}] * layers
    dims = (
        {0: batch, 1: sequence},
        {0: batch},
        {0: batch},
        {0: batch, 1: wanted},
        {},
        cache_dims,
        cache_dims,
    )
    program = export(module, (*integers, indices, inv_freq, *caches), dynamic_shapes=dims, strict=False)

    build = GraphBuilder("whole", {"": ONNX_OPSET, opspec.DOMAIN: opspec.DOMAIN_VERSION})
    int64, float32 = ir.DataType.INT64, ir.DataType.FLOAT
    inputs = {
        "input_ids": build.input("input_ids", int64, ["batch", "sequence"]),
        "past_lengths": build.input("past_lengths", int64, ["batch"]),
        "query_lengths": build.input("query_lengths", int64, ["batch"]),
        "logits_indices": build.input("logits_indices", int64, ["batch", "wanted"]),
        "inv_freq": build.constant(INV_FREQ, inverse_frequencies(config.rope, config.head_dim)[0]),
    }
    build.define_dim("batch", inputs["input_ids"], 0)
    build.define_dim("sequence", inputs["input_ids"], 1)
    build.define_dim("wanted", inputs["logits_indices"], 1)
    shape = ["batch", config.num_key_value_heads, "capacity", config.head_dim]
    for layer in range(layers):
        for kind in ("key", "value"):
            inputs[f"{kind}s_{layer}"] = build.input(f"past_{kind}.{layer}", float32, shape)

    def rename(path: str) -> str:
        path = path.removeprefix("head.")
        return (
            "model.embed_tokens.weight" if config.tie_word_embeddings and path == "lm_head.weight" else path
        )

    logits, *presents = stamp(build, program, "", inputs, rename)
    build.output(logits, "logits")
    for index, present in enumerate(presents):
        build.output(present, f"present_{('key', 'value')[index % 2]}.{index // 2}")
    model = ir.Model(build.graph, ir_version=IR_VERSION, functions=functions)
    run_passes(model, [MergeReshapes(), RemoveUnused()])
    return model


def op_types(model: ir.Model) -> Counter[str]:
    return Counter(f"{node.domain}:{node.op_type}" for node in model.graph)


def step(config: ModelConfig) -> dict[str, Array]:
    """A ragged step on a filled cache."""
    rng = np.random.default_rng(0)
    cache = (3, config.num_key_value_heads, 9, config.head_dim)
    feed: dict[str, Array] = {
        "input_ids": rng.integers(0, config.vocab_size, (3, 4)),
        "past_lengths": np.array([5, 0, 2]),
        "query_lengths": np.array([4, 1, 3]),
        "logits_indices": np.array([[3, 0], [0, 0], [2, 1]]),
    }
    for layer in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            feed[f"past_{kind}.{layer}"] = rng.standard_normal(cache, dtype=np.float32)
    return feed


@pytest.mark.parametrize("name", CONFIGS)
def test_stamped_layers_are_the_whole_model(name: str) -> None:
    config = config_of(name)
    weights = random_weights(tiny_config(**CONFIGS[name]))
    stamped = canonical_graph(config, "float32")
    whole = emit_whole(config, list(stamped.functions.values()))
    assert op_types(whole) == op_types(stamped)
    assert set(whole.graph.initializers) == set(stamped.graph.initializers)
    expected, actual = (run(fill(model, weights), step(config)) for model in (whole, stamped))
    assert list(expected) == list(actual)
    assert np.abs(expected["logits"]).max() > 3
    for output, array in expected.items():
        assert np.array_equal(array, actual[output]), output


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("dense-yarn", [(False, 0)]),
        ("moe-mixed-tied", [(False, 0), (True, 0)]),
        ("windows", [(False, 0), (False, 3)]),
    ],
)
def test_each_kind_of_layer_is_traced_once(name: str, kinds: list[tuple[bool, int]]) -> None:
    parts = trace(config_of(name), "float32")
    assert list(parts.layers) == kinds
    programs = (parts.embedding, *parts.layers.values(), parts.head)
    assert all(p.device.type == "meta" for program in programs for p in program.parameters())


@pytest.mark.parametrize(
    ("name", "dtype"), [("dense-yarn", "float32"), ("moe-mixed-tied", "bfloat16"), ("windows", "float32")]
)
def test_initializers_are_the_parameters(name: str, dtype: str) -> None:
    """Hugging Face names and shapes; a tied head is the embedding, once; no weight is in the graph."""
    config = config_of(name)
    graph = canonical(name, dtype).graph
    unbound = {k: v for k, v in graph.initializers.items() if v.const_value is None}
    shapes = {k: tuple(v.shape.numpy()) for k, v in unbound.items() if v.shape is not None}
    assert shapes == expected_parameters(config)
    assert {value.dtype for value in unbound.values()} == {
        ir.DataType.FLOAT if dtype == "float32" else ir.DataType.BFLOAT16
    }
    readers = Counter(v.name for node in graph for v in node.inputs if v is not None and v.name in unbound)
    twice = {"model.embed_tokens.weight"} if config.tie_word_embeddings else set()
    assert {name for name, count in readers.items() if count > 1} == twice
    assert sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None) < 4096


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_inputs_and_outputs(dtype: str) -> None:
    config = config_of("moe-mixed-tied")
    model = canonical("moe-mixed-tied", dtype)
    cache = f"{dtype}[batch,2,capacity,4]"
    layers = range(config.num_hidden_layers)
    both = [f"{kind}.{layer}: {cache}" for layer in layers for kind in ("key", "value")]
    assert [signature(value) for value in model.graph.inputs] == [
        "input_ids: int64[batch,sequence]",
        "past_lengths: int64[batch]",
        "query_lengths: int64[batch]",
        "logits_indices: int64[batch,wanted]",
        *(f"past_{text}" for text in both),
    ]
    assert [signature(value) for value in model.graph.outputs] == [
        "logits: float32[batch,wanted,131]",
        *(f"present_{text}" for text in both),
    ]
    assert model.ir_version == IR_VERSION
    assert model.graph.opset_imports == {"": ONNX_OPSET, opspec.DOMAIN: opspec.DOMAIN_VERSION}
    assert {name for _, name, _ in model.functions} == {
        opspec.ROTARY.name,
        opspec.ATTENTION.name,
        opspec.MOE.name,
    }
    assert sum(node.op_type == "Cast" for node in model.graph) == (dtype != "float32")  # the logits'


def signature(value: ir.Value) -> str:
    sizes = ",".join(str(dim.value if isinstance(dim, ir.SymbolicDim) else dim) for dim in value.shape or ())
    names = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.INT64: "int64"}
    return f"{value.name}: {names.get(value.dtype, 'bfloat16')}[{sizes}]"


def test_node_names_carry_the_layer_path() -> None:
    graph = canonical("moe-mixed-tied").graph
    names = [node.name or "" for node in graph]
    assert len(names) == len(set(names))
    assert all("/" in name and not name.startswith("node_") for name in names)
    layers = {
        layer: sorted(
            name.removeprefix(f"model.layers.{layer}") for name in names if f"model.layers.{layer}" in name
        )
        for layer in range(4)
    }
    assert [name for name in layers[0] if name != "/Reshape"] == layers[2]  # dense; the first also flattens
    assert layers[1] == layers[3]  # sparse
    assert {".self_attn.q_proj/Gemm", ".self_attn.rotary_k/Q2RotaryEmbedding", ".mlp.experts/Q2MoE"} <= set(
        layers[3]
    )
    assert {"model.embed_tokens/Gather", "model.norm/RMSNormalization", "lm_head/Gemm"} <= set(names)


def test_module_results_are_named_by_their_module() -> None:
    """What parity looks up."""
    graph = canonical("moe-mixed-tied").graph
    producers = {value.name: node.op_type for node in graph for value in node.outputs}
    expected = {
        "model.embed_tokens": "Gather",
        "model.layers.0.input_layernorm": "RMSNormalization",
        "model.layers.0.self_attn.v_proj": "Gemm",
        "model.layers.0.self_attn.attention": "Q2GroupQueryAttention",
        "model.layers.0.mlp.down_proj": "Gemm",
        "model.layers.0": "Add",
        "model.layers.1.mlp.gate": "Gemm",
        "model.layers.1.mlp": "Add",
        "model.layers.3": "Add",
        "model.norm": "RMSNormalization",
        "lm_head": "Gemm",
    }
    assert {name: producers.get(name) for name in expected} == expected


def test_custom_ops_carry_their_attributes() -> None:
    graph = canonical("windows").graph
    windows = []
    for node in graph:
        if node.domain == opspec.DOMAIN:
            spec = opspec.BY_NAME[node.op_type]
            assert set(node.attributes) == {*spec.attribute_names(), "plugin_version", "plugin_namespace"}
            assert node.attributes["plugin_namespace"].as_string() == opspec.PLUGIN_NAMESPACE
            if spec is opspec.ATTENTION:
                assert node.attributes["num_heads"].as_int() == 14
                assert node.attributes["num_kv_heads"].as_int() == 2
                assert node.attributes["scale"].as_float() == pytest.approx(4**-0.5)
                windows.append(node.attributes["sliding_window"].as_int())
    assert windows == [0, 0, 3, 3]


@pytest.mark.parametrize("name", CONFIGS)
def test_checker_and_shape_inference_agree(name: str) -> None:
    proto = ir.to_proto(fill(canonical(name), random_weights(tiny_config(**CONFIGS[name]))))
    onnx.checker.check_model(proto, full_check=True, check_custom_domain=False)
    check_structure(proto)


def test_checker_message() -> None:
    proto = ir.to_proto(fill(canonical("windows"), random_weights(tiny_config(**CONFIGS["windows"]))))
    del proto.graph.node[3].output[:]
    with pytest.raises(ExportError, match=r"onnx\.checker refuses the graph"):
        check_structure(proto)


def test_unknown_operator_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Tanh()

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.inner(x),)

    build = GraphBuilder("odd", {"": ONNX_OPSET})
    x = build.input("x", ir.DataType.FLOAT, [2, 3])
    program = export(Odd(), (torch.zeros(2, 3),), strict=False)
    with pytest.raises(
        ExportError, match=r"^model\.layers\.7\.inner: the operator aten\.tanh\.default has no ONNX"
    ):
        stamp(build, program, "model.layers.7", {"x": x}, str)


def test_builder_refuses_an_undefined_dimension_and_numbers_names() -> None:
    build = GraphBuilder("g", {"": ONNX_OPSET})
    with pytest.raises(ExportError, match="dimension 'batch', which no input defines"):
        build.shape(["batch", 3])
    x = build.input("x", ir.DataType.FLOAT, ["batch", 3])
    build.define_dim("batch", x, 0)
    assert build.shape(["batch", 3]) is build.shape(["batch", 3])
    assert build.int64(3) is build.int64(3)
    assert build.int64(3) is not build.int64([3])
    assert [build.op("Neg", [x], name="a/Neg").producer().name for _ in range(3)] == [
        "a/Neg",
        "a/Neg_1",
        "a/Neg_2",
    ]


def test_a_model_is_traced_once_for_each_type() -> None:
    config = config_of("dense-yarn")
    assert trace(config, "float32") is trace(replace(config, warnings=("careful",)), "float32")
    assert trace(config, "float32") is not trace(config, "bfloat16")
    assert trace(replace(config, vocab_size=132), "float32") is not trace(config, "float32")


LARGE = """
import json, sys
from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.export import canonical_graph
from q2export.pipeline.stopwatch import peak_rss_bytes
config = parse_config(json.loads(sys.argv[1]), "large")
model = canonical_graph(config, "bfloat16")
peak = peak_rss_bytes()
print(json.dumps([peak, len(model.graph), len(model.graph.initializers)]))
"""


def test_a_72b_model_is_emitted_without_its_weights() -> None:
    config = tiny_config(
        hidden_size=8192, intermediate_size=29568, num_attention_heads=64, num_key_value_heads=8,
        num_hidden_layers=80, vocab_size=152064, max_window_layers=80,
    )  # fmt: skip
    command = [sys.executable, "-c", LARGE, json.dumps(config)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, nodes, initializers = json.loads(answer.stdout)
    assert peak < 700e6  # of 145 GB
    assert nodes > 80 * 20
    assert initializers >= 3 + 80 * 12
