"""Assembling the canonical ONNX graph of a model from its traced parts."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.graph.builder import GraphBuilder
from q2export.exporter.graph.ops.functions import IR_VERSION, ONNX_OPSET, function_for
from q2export.exporter.graph.stamp import stamp
from q2export.exporter.graph.trace import TracedDecoder, layer_kind, trace
from q2export.version import __version__

INV_FREQ = "model.rotary_emb.inv_freq"


def emit(config: ModelConfig, dtype: str) -> ir.Model:
    """Trace ``config`` and return its canonical graph; see DESIGN "Canonical graph" for inputs and outputs.

    Args:
        config: the model.
        dtype: ``float32``, ``float16`` or ``bfloat16``: type of weights, activations and KV cache. Logits are
            float32 in every case.

    Returns:
        A model whose weights are initializers under their Hugging Face names, without data (``bind`` says
        where the data lies), and whose custom ops carry function bodies.

    Raises:
        ExportError: the trace holds something that has no translation.
    """
    return assemble(config, trace(config, dtype), dtype)


def assemble(config: ModelConfig, traced: TracedDecoder, dtype: str) -> ir.Model:
    """Stamp the traced parts of ``config`` into one model, layer by layer."""
    build = GraphBuilder("q2export", {"": ONNX_OPSET, opspec.DOMAIN: opspec.DOMAIN_VERSION})
    float_type = ir.DataType[BY_NAME[dtype].onnx]
    input_ids = build.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    past_lengths = build.input("past_lengths", ir.DataType.INT64, ["batch"])
    query_lengths = build.input("query_lengths", ir.DataType.INT64, ["batch"])
    logits_indices = build.input("logits_indices", ir.DataType.INT64, ["batch", "wanted"])
    build.define_dim("batch", input_ids, 0)
    build.define_dim("sequence", input_ids, 1)
    build.define_dim("wanted", logits_indices, 1)
    inv_freq = build.constant(INV_FREQ, inverse_frequencies(config.rope, config.head_dim)[0])

    hidden, position_ids = stamp(
        build, traced.embedding, "model", {"input_ids": input_ids, "past_lengths": past_lengths}, str
    )
    cache_shape: list[int | str] = ["batch", config.num_key_value_heads, "capacity", config.head_dim]
    presents = []
    for layer in range(config.num_hidden_layers):
        inputs = {
            "hidden": hidden,
            "position_ids": position_ids,
            "inv_freq": inv_freq,
            "past_key": build.input(f"past_key.{layer}", float_type, cache_shape),
            "past_value": build.input(f"past_value.{layer}", float_type, cache_shape),
            "past_lengths": past_lengths,
            "query_lengths": query_lengths,
        }
        program = traced.layers[layer_kind(config, layer)]
        hidden, *present = stamp(build, program, f"model.layers.{layer}", inputs, str)
        hidden.name = f"model.layers.{layer}"
        presents.append(present)

    def tie(name: str) -> str:
        return (
            "model.embed_tokens.weight" if config.tie_word_embeddings and name == "lm_head.weight" else name
        )

    (logits,) = stamp(build, traced.head, "", {"hidden": hidden, "logits_indices": logits_indices}, tie)
    build.output(logits, "logits")
    for layer, (key, value) in enumerate(presents):
        build.output(key, f"present_key.{layer}")
        build.output(value, f"present_value.{layer}")
    return ir.Model(
        build.graph,
        ir_version=IR_VERSION,
        producer_name="q2export",
        producer_version=__version__,
        functions=_functions(config),
    )


def _functions(config: ModelConfig) -> list[ir.Function]:
    """Bodies of the ops this model uses."""
    protos = [function_for(opspec.ROTARY), function_for(opspec.ATTENTION)]
    if config.moe is not None and any(config.is_moe_layer(i) for i in range(config.num_hidden_layers)):
        protos.append(function_for(opspec.MOE, config.moe.num_experts))
    return [ir.serde.deserialize_function(proto) for proto in protos]
