"""The one specification of every custom op, from which all its other forms follow.

The torch operator's schema, the ONNX function's signature, the TensorRT plugin's fields and its aliasing
table are all derived from the :class:`OpSpec` here; none of them is written down a second time.

Symbols in shapes: ``B`` batch, ``S`` sequence (new tokens of this step), ``T`` = ``B * S``, ``C`` capacity of
the KV cache, ``Hq``/``Hkv`` query and key/value heads, ``D`` head_dim, ``H`` hidden_size, ``E`` experts,
``I`` moe_intermediate_size, ``K``/``N`` inputs and outputs of a linear layer; of packed weights a row of
``X`` codes takes ``X*bits/8`` bytes and has ``X/block_size`` scales. Formulas have one symbol, numbers and
attributes.

Element types: ``T`` the graph's floating-point type, ``F`` always float32, ``KV`` the cache's and ``W`` a
weight's own floating-point type (TensorRT plugins want both to be ``T``), ``S`` that of scales,
float16, ``P`` packed codes, ``U`` uint8, ``L`` int64. Codes are bytes, or int32 words of four of them, the
first in the lowest bits: the same data, with a fourth as many elements in the last axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from q2export.contracts.dtypes import FLOAT_NAMES

DOMAIN = "q2export"
DOMAIN_VERSION = 1

CONTRACT_VERSION = 4
"""Raised whenever an input, output, attribute or meaning below changes; stored in every engine package."""

PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "q2export"

ElementType = Literal["T", "F", "KV", "W", "S", "P", "U", "L"]
AttributeType = Literal["int", "float"]

ELEMENT_TYPES: Mapping[ElementType, tuple[str, ...]] = MappingProxyType(
    {
        "T": FLOAT_NAMES,
        "F": ("float32",),
        "KV": FLOAT_NAMES,
        "W": FLOAT_NAMES,
        "S": ("float16",),
        "P": ("uint8", "int32"),
        "U": ("uint8",),
        "L": ("int64",),
    }
)
"""What an element type may be, by the names of :mod:`q2export.contracts.dtypes`."""

PLUGIN_TYPES: Mapping[ElementType, tuple[str, ...]] = MappingProxyType({**ELEMENT_TYPES, "P": ("int32",)})
"""What it may be in a TensorRT plugin; constants of uint8 would become int32, each byte a word."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, element type and symbolic shape."""

    name: str
    element_type: ElementType
    shape: tuple[str, ...]

    @property
    def has_graph_type(self) -> bool:
        """Whether a TensorRT plugin wants it in the graph's floating-point type."""
        return self.element_type in ("T", "KV", "W")


@dataclass(frozen=True)
class AttributeSpec:
    """An attribute. Booleans are ints 0 and 1, as ONNX and TensorRT plugin fields have them."""

    name: str
    type: AttributeType
    meaning: str


@dataclass(frozen=True)
class OpSpec:
    """One custom op.

    Attributes:
        name: ONNX op type and plugin name. The ``Q2`` prefix is needed because TensorRT's importers match
            built-in ops by op type alone, in any domain.
        torch_name: name in the ``q2export`` torch library namespace.
        inputs: fixed inputs, in order.
        repeated: inputs that follow the fixed ones once per expert, in order; empty for most ops.
        optional: inputs that follow the fixed ones or are left out.
        outputs: outputs, in order.
        attributes: required attributes, in order.
        cpu_attributes: ints that the lowering to the CPU gives a node beside the others; absent, they are 0.
            TensorRT plugins have no such fields: a graph that has one is refused.
        aliases: output name -> input name it updates in place. ONNX and torch see a functional op; an engine
            binds both names to one buffer.
    """

    name: str
    torch_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    cpu_attributes: tuple[AttributeSpec, ...] = ()
    repeated: tuple[TensorSpec, ...] = ()
    optional: tuple[TensorSpec, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def input_names(self, repeats: int = 0) -> tuple[str, ...]:
        """Names of all inputs, with the repeated ones numbered: ``gate_0, up_0, down_0, gate_1, ...``."""
        numbered = tuple(f"{spec.name}_{index}" for index in range(repeats) for spec in self.repeated)
        return tuple(spec.name for spec in (*self.inputs, *self.optional)) + numbered

    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs."""
        return tuple(spec.name for spec in self.outputs)

    def attribute_names(self) -> tuple[str, ...]:
        """Names of the required attributes, without the two that every plugin node carries."""
        return tuple(spec.name for spec in self.attributes)


_CACHE = ("B", "Hkv", "C", "D")
_LENGTHS = (TensorSpec("past_lengths", "L", ("B",)), TensorSpec("query_lengths", "L", ("B",)))
_QKV = (
    TensorSpec("query", "T", ("B", "S", "Hq", "D")),
    TensorSpec("key", "T", ("B", "S", "Hkv", "D")),
    TensorSpec("value", "T", ("B", "S", "Hkv", "D")),
)
_PAST = (TensorSpec("past_key", "KV", _CACHE), TensorSpec("past_value", "KV", _CACHE))
_ATTENTION_OUTPUTS = (
    TensorSpec("output", "T", ("B", "S", "Hq", "D")),
    TensorSpec("present_key", "KV", _CACHE),
    TensorSpec("present_value", "KV", _CACHE),
)
_ATTENTION_ATTRIBUTES = (
    AttributeSpec("num_heads", "int", "query heads"),
    AttributeSpec("num_kv_heads", "int", "key/value heads; divides num_heads"),
    AttributeSpec("scale", "float", "factor on the scores before the softmax, head_dim ** -0.5"),
    AttributeSpec("sliding_window", "int", "newest keys a query sees, itself included; 0 = all"),
)
_ATTENTION_ALIASES = (("present_key", "past_key"), ("present_value", "past_value"))
_ATTENTION_FACTOR = AttributeSpec("attention_factor", "float", "YaRN's factor on cos and sin; 1 without YaRN")

ROTARY = OpSpec(
    name="Q2RotaryEmbedding",
    torch_name="rotary_embedding",
    inputs=(
        TensorSpec("x", "T", ("B", "S", "Hq", "D")),
        TensorSpec("position_ids", "L", ("B", "S")),
        TensorSpec("inv_freq", "F", ("D/2",)),
    ),
    outputs=(TensorSpec("y", "T", ("B", "S", "Hq", "D")),),
    attributes=(_ATTENTION_FACTOR,),
)
"""Rotary position embedding (Su et al. 2021; YaRN: Peng et al. 2023), half-split; angles in float32."""

ATTENTION = OpSpec(
    name="Q2GroupQueryAttention",
    torch_name="group_query_attention",
    inputs=(*_QKV, *_PAST, *_LENGTHS),
    outputs=_ATTENTION_OUTPUTS,
    attributes=_ATTENTION_ATTRIBUTES,
    aliases=_ATTENTION_ALIASES,
)
"""Append keys and values at ``past_lengths``, then causal grouped-query attention (Ainslie et al. 2023).

Row ``b`` appends ``query_lengths[b]`` tokens; tokens beyond that are padding: they write nothing, and what
the op outputs for them is unspecified but finite. Cache positions at or beyond ``past_lengths +
query_lengths`` are never read, whatever they hold.
"""

ROTARY_ATTENTION = OpSpec(
    name="Q2RotaryAttention",
    torch_name="rotary_attention",
    inputs=(*_QKV, *_PAST, *_LENGTHS, TensorSpec("inv_freq", "F", ("D/2",))),
    outputs=_ATTENTION_OUTPUTS,
    attributes=(*_ATTENTION_ATTRIBUTES, _ATTENTION_FACTOR),
    aliases=_ATTENTION_ALIASES,
)
"""Both rotations and the attention that reads them as one op, made by a pass and never by the tracer.

Token ``s`` of row ``b`` stands at position ``past_lengths[b] + s``.
"""

_MOE_INPUTS = (TensorSpec("hidden", "T", ("T", "H")), TensorSpec("router_logits", "T", ("T", "E")))
_MOE_ATTRIBUTES = (
    AttributeSpec("num_experts", "int", "experts, E"),
    AttributeSpec("top_k", "int", "experts each token goes to"),
    AttributeSpec("norm_topk_prob", "int", "1: the chosen probabilities are divided by their sum"),
)
_BFLOAT16_ACTIVATIONS = AttributeSpec(
    "bfloat16_activations", "int", "1: what weights multiply is rounded to bfloat16, as they are"
)
_PACKING_ATTRIBUTES = (
    AttributeSpec("bits", "int", "of a code, 4 or 8"),
    AttributeSpec("block_size", "int", "elements of a row that share a scale: 32, 64 or 128"),
)
_INT8_ACTIVATIONS = AttributeSpec(
    "int8_activations", "int", "1: activations are rounded to int8, block by block"
)
_PACKED_ATTRIBUTES = (*_PACKING_ATTRIBUTES, _INT8_ACTIVATIONS)

MOE = OpSpec(
    name="Q2MoE",
    torch_name="moe",
    inputs=_MOE_INPUTS,
    repeated=(
        TensorSpec("gate", "W", ("I", "H")),
        TensorSpec("up", "W", ("I", "H")),
        TensorSpec("down", "W", ("H", "I")),
    ),
    outputs=(TensorSpec("output", "T", ("T", "H")),),
    attributes=_MOE_ATTRIBUTES,
    cpu_attributes=(_BFLOAT16_ACTIVATIONS,),
)
"""Mixture of SwiGLU experts: softmax over all in float32, top-k, dispatch to the chosen only, weighted sum.

The chosen experts are those of the largest logits; of equal ones, those of the lowest index.

Expert weights stay in Hugging Face's [out, in] layout, one input each, as on disk.

With ``bfloat16_activations``, over experts of bfloat16, the hidden states that gate and up multiply and the
SwiGLU that down multiplies are rounded as in ``Q2Linear``.
"""

LINEAR = OpSpec(
    name="Q2Linear",
    torch_name="linear",
    inputs=(TensorSpec("input", "F", ("T", "K")), TensorSpec("weight", "W", ("N", "K"))),
    optional=(TensorSpec("bias", "F", ("N",)),),
    outputs=(TensorSpec("output", "F", ("T", "N")),),
    attributes=(_BFLOAT16_ACTIVATIONS,),
)
"""``input @ weight.T + bias`` in float32 over a weight of 16 or 32 bits where it lies, widened exactly.

With ``bfloat16_activations`` the input is rounded to bfloat16 first, to nearest, ties to even; products are
exact and sums float32 all the same. Only over a weight of bfloat16.

Made by a pass for the CPU, where ONNX Runtime multiplies weights of its own types only.
"""

SWIGLU = OpSpec(
    name="Q2SwiGLU",
    torch_name="swiglu",
    inputs=(TensorSpec("gate", "F", ("T", "I")), TensorSpec("up", "F", ("T", "I"))),
    outputs=(TensorSpec("output", "F", ("T", "I")),),
    attributes=(),
)
"""``silu(gate) * up`` in float32, element by element (Shazeer 2020), in one pass over both."""


def _packed(name: str, rows: tuple[str, ...], columns: str) -> tuple[TensorSpec, ...]:
    """Codes, scales and zero points of a matrix in the packed form."""
    codes = TensorSpec(name, "P", (*rows, f"{columns}*bits/8"))
    scale = TensorSpec(f"{name}_scale", "S", (*rows, f"{columns}/block_size"))
    return codes, scale, TensorSpec(f"{name}_zero_point", "U", (*rows, f"{columns}/block_size*bits/8"))


_WEIGHT = _packed("weight", ("N",), "K")
_GATE_UP, _DOWN = _packed("gate_up", ("E", "2*I"), "H"), _packed("down", ("E", "H"), "I")

QUANTIZED_LINEAR = OpSpec(
    name="Q2QuantizedLinear",
    torch_name="quantized_linear",
    inputs=(TensorSpec("input", "F", ("T", "K")), *_WEIGHT[:2]),
    optional=(_WEIGHT[2], TensorSpec("bias", "F", ("N",))),
    outputs=(TensorSpec("output", "F", ("T", "N")),),
    attributes=_PACKED_ATTRIBUTES,
)
"""``input @ weight.T + bias`` in float32 over a weight ``(code - zero point) * scale`` in the packed form.

The packed form is described in ``exporter/checkpoint/packed.py``; without zero points they are in the middle,
8 or 128. Rounded to int8, a block of activations has the scale that makes its largest magnitude 127.
"""

QUANTIZED_GATHER = OpSpec(
    name="Q2QuantizedGather",
    torch_name="quantized_gather",
    inputs=(TensorSpec("indices", "L", ("B", "S")), *_WEIGHT[:2]),
    optional=(_WEIGHT[2],),
    outputs=(TensorSpec("output", "F", ("B", "S", "K")),),
    attributes=_PACKING_ATTRIBUTES,
)
"""Rows of a weight in the packed form, exact in float32; indices are from 0 to ``N - 1``."""

QUANTIZED_MOE = OpSpec(
    name="Q2QuantizedMoE",
    torch_name="quantized_moe",
    inputs=(*_MOE_INPUTS, *_GATE_UP[:2], *_DOWN[:2]),
    optional=(_GATE_UP[2], _DOWN[2]),
    outputs=(TensorSpec("output", "T", ("T", "H")),),
    attributes=(*_MOE_ATTRIBUTES, *_PACKING_ATTRIBUTES),
    cpu_attributes=(_INT8_ACTIVATIONS,),
)
"""``Q2MoE`` over experts in the packed form, whose gate and up rows alternate: gate 0, up 0, gate 1, ...

All experts of a layer follow each other in the packed form, so one input holds them all, in place. The
TensorRT plugin takes no zero points.
"""

ALL: tuple[OpSpec, ...] = (ROTARY, ATTENTION, ROTARY_ATTENTION, MOE, QUANTIZED_MOE)
"""The ops that are TensorRT plugins, too."""

CPU_ONLY: tuple[OpSpec, ...] = (LINEAR, SWIGLU, QUANTIZED_LINEAR, QUANTIZED_GATHER)
"""The ops that have kernels for the CPU alone, where the others have some, too."""

BY_NAME: dict[str, OpSpec] = {spec.name: spec for spec in (*ALL, *CPU_ONLY)}
