"""Intermediate tensors that both sides of a comparison can show.

Both name them by the module path of the Hugging Face checkpoint, so that the same name means the same
numbers. In the order of computation:

=========================================  ==========================================================
activation                                 tensor
=========================================  ==========================================================
``model.embed_tokens``                     token embeddings
``model.layers.I.input_layernorm``         normalised input of attention
``model.layers.I.self_attn.q_proj``        queries before rotation (likewise ``k_proj``, ``v_proj``)
``model.layers.I.self_attn.attention``     attention output, heads concatenated, before ``o_proj``
``model.layers.I.self_attn.o_proj``        what attention adds to the residual stream
``model.layers.I.post_attention_layernorm``  normalised input of the MLP
``model.layers.I.mlp.gate``                router logits (MoE layers only)
``model.layers.I.mlp``                     what the MLP adds: dense, or all experts with the shared one
``model.layers.I``                         residual stream after layer ``I``
``model.norm``                             final norm
``lm_head``                                logits
=========================================  ==========================================================

An engine may leave some out (fused away); those it lists it must be able to show, and the reference knows
every name of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING = "model.embed_tokens"
NORM = "model.norm"
HEAD = "lm_head"
ROUTER = "mlp.gate"

WITHIN_LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.attention",
    "self_attn.o_proj",
    "post_attention_layernorm",
    ROUTER,
    "mlp",
)
"""Within a decoder layer, in the order of computation."""


def layer_path(layer: int) -> str:
    """Module path of decoder layer ``layer``: the name of the residual stream after it."""
    return f"model.layers.{layer}"


@dataclass(frozen=True)
class Activation:
    """One tensor the engine can show.

    Attributes:
        name: module path, see the table above.
        layer: index of the decoder layer it belongs to, or None (embedding, final norm, head).
        op: what computes it, for people: an op type such as ``Q2GroupQueryAttention`` or ``Gemm``.
    """

    name: str
    layer: int | None
    op: str

    @property
    def is_stage(self) -> bool:
        """Whether it is on the way of the residual stream, rather than inside a layer."""
        return self.layer is None or self.name == layer_path(self.layer)
