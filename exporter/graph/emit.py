"""Assembling the canonical ONNX graph of a model from its traced parts."""

from __future__ import annotations

import onnx_ir as ir

from q2export.contracts import opspec, step
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
    """Trace ``config`` and return its canonical graph; :mod:`q2export.contracts.step` has inputs and outputs.

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
    values = _inputs(build, config, dtype)
    inv_freq = build.constant(INV_FREQ, inverse_frequencies(config.rope, config.head_dim)[0])

    hidden, position_ids = stamp(build, traced.embedding, "model", values, str)
    presents: list[ir.Value] = []
    for layer in range(config.num_hidden_layers):
        caches = {tensor.name: values[tensor.at(layer)] for tensor in step.PAST}
        inputs = {**values, **caches, "hidden": hidden, "position_ids": position_ids, "inv_freq": inv_freq}
        program = traced.layers[layer_kind(config, layer)]
        hidden, *present = stamp(build, program, f"model.layers.{layer}", inputs, str)
        hidden.name = f"model.layers.{layer}"
        presents += present

    def tie(name: str) -> str:
        return (
            "model.embed_tokens.weight" if config.tie_word_embeddings and name == "lm_head.weight" else name
        )

    (logits,) = stamp(build, traced.head, "", {**values, "hidden": hidden}, tie)
    build.output(logits, step.LOGITS.name)
    for names, cache in zip(step.cache_names(config.num_hidden_layers), presents, strict=True):
        build.output(cache, names.present)
    return ir.Model(
        build.graph,
        ir_version=IR_VERSION,
        producer_name="q2export",
        producer_version=__version__,
        functions=_functions(config),
    )


def _inputs(build: GraphBuilder, config: ModelConfig, dtype: str) -> dict[str, ir.Value]:
    """The inputs of the graph, by name, and the dynamic sizes that nodes may use."""
    signature = step.StepSignature(
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.vocab_size, dtype
    )
    values = {
        tensor.name: build.input(tensor.name, ir.DataType[BY_NAME[tensor.dtype].onnx], tensor.shape)
        for tensor in signature.inputs
    }
    for dim in (step.BATCH, step.SEQUENCE, step.WANTED):
        source = next(tensor for tensor in step.STEP_INPUTS if dim in tensor.shape)
        build.define_dim(dim, values[source.name], source.shape.index(dim))
    return values


def _functions(config: ModelConfig) -> list[ir.Function]:
    """Bodies of the ops this model uses."""
    protos = [function_for(opspec.ROTARY), function_for(opspec.ATTENTION)]
    if config.moe is not None and any(config.is_moe_layer(i) for i in range(config.num_hidden_layers)):
        protos.append(function_for(opspec.MOE, num_experts=config.moe.num_experts))
    return [ir.serde.deserialize_function(proto) for proto in protos]
