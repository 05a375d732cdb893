"""ONNX function bodies of the custom ops, so that any ONNX runtime can run the canonical graph."""

from __future__ import annotations

import onnx

from q2export.contracts import opspec
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops import attention, linear, moe, quantized, quantized_gather, rotary, swiglu

ONNX_OPSET = 23
"""Opset of the graph and of all function bodies (the first with RMSNormalization)."""

IR_VERSION = 11

PLUGIN_ATTRIBUTES = ("plugin_version", "plugin_namespace")
"""What every node of an op that is a TensorRT plugin carries beside the op's own attributes."""

_FUSED = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    sequence_dim = Shape <start = 1, end = 2> (query)
    sequence = Squeeze (sequence_dim, axis0)
    step = Range (zero, sequence, one)
    past_column = Unsqueeze (past_lengths, axis1)
    position_ids = Add (past_column, step)
    query_rotated = q2export.Q2RotaryEmbedding
        <attention_factor: float = @attention_factor, plugin_version: string = @plugin_version,
         plugin_namespace: string = @plugin_namespace> (query, position_ids, inv_freq)
    key_rotated = q2export.Q2RotaryEmbedding
        <attention_factor: float = @attention_factor, plugin_version: string = @plugin_version,
         plugin_namespace: string = @plugin_namespace> (key, position_ids, inv_freq)
    output, present_key, present_value = q2export.Q2GroupQueryAttention
        <num_heads: int = @num_heads, num_kv_heads: int = @num_kv_heads, scale: float = @scale,
         sliding_window: int = @sliding_window, plugin_version: string = @plugin_version,
         plugin_namespace: string = @plugin_namespace>
        (query_rotated, key_rotated, value, past_key, past_value, past_lengths, query_lengths)
"""

_PACKED_BODIES = {
    opspec.QUANTIZED_LINEAR.name: quantized.linear_body,
    opspec.QUANTIZED_GATHER.name: quantized_gather.gather_body,
    opspec.QUANTIZED_MOE.name: quantized.moe_body,
}

_BODIES = {
    opspec.ROTARY.name: rotary.BODY,
    opspec.ATTENTION.name: attention.BODY,
    opspec.ROTARY_ATTENTION.name: _FUSED,
    opspec.LINEAR.name: linear.BODY,
    opspec.SWIGLU.name: swiglu.BODY,
}


def function_for(
    spec: opspec.OpSpec,
    *,
    num_experts: int = 0,
    widen: bool = False,
    scheme: Scheme | None = None,
    words: bool = False,
) -> onnx.FunctionProto:
    """Return the function that defines ``spec`` in standard ONNX ops.

    Args:
        spec: the op.
        num_experts: for ``Q2MoE``, whose function has three inputs per expert; functions have no
            variadic ones.
        widen: for ``Q2MoE``, whose weights are of another type than what they multiply; it then reads its
            attributes for the CPU, which every node of the graph must have.
        scheme: for ops over packed weights, that of all of a graph.
        words: for ``Q2QuantizedMoE``, as TensorRT has it: codes are int32 words, there are neither zero
            points nor attributes for the CPU.
    """
    is_packed_for_cpu = scheme is not None and not words
    names = [*spec.attribute_names()]
    if spec in opspec.ALL and not is_packed_for_cpu:
        names += PLUGIN_ATTRIBUTES
    if widen or is_packed_for_cpu:
        names += [attribute.name for attribute in spec.cpu_attributes]
    attributes = ", ".join(names)
    inputs = (
        ", ".join(each.name for each in spec.inputs) if words else ", ".join(spec.input_names(num_experts))
    )
    outputs = ", ".join(spec.output_names())
    imports = f'["" : {ONNX_OPSET}, "{opspec.DOMAIN}" : {opspec.DOMAIN_VERSION}]'
    return onnx.parser.parse_function(
        f'<domain: "{opspec.DOMAIN}", opset_import: {imports}>\n'
        f"{spec.name} {f'<{attributes}>' if attributes else ''} ({inputs}) => ({outputs})\n"
        f"{{{_body(spec, num_experts, widen, scheme, words)}}}"
    )


def _body(spec: opspec.OpSpec, num_experts: int, widen: bool, scheme: Scheme | None, words: bool) -> str:
    if spec is opspec.MOE:
        return moe.body(num_experts, widen=widen)
    if scheme is not None and words:
        return quantized.words_moe_body(scheme)
    if scheme is not None:
        return _PACKED_BODIES[spec.name](scheme)
    return _BODIES[spec.name]
