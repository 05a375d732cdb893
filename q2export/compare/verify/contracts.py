"""What parity asks of its two sides: the PyTorch reference and the engine under test.

Both sides name intermediate tensors ("points") by the module path of the Hugging Face checkpoint, so that
the same name means the same numbers. In the order of computation:

=========================================  ==========================================================
point                                      tensor
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

An engine may leave points out (fused away); those it lists it must be able to capture, and the reference
must know every name of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from q2export.runtime.backends.base import Float32Array

EMBEDDING_POINT = "model.embed_tokens"
NORM_POINT = "model.norm"
HEAD_POINT = "lm_head"


def residual_point(layer: int) -> str:
    """Name of the residual stream after layer ``layer``."""
    return f"model.layers.{layer}"


@dataclass(frozen=True)
class PointInfo:
    """One tensor the engine can expose.

    Attributes:
        name: module path, see the table above.
        layer: index of the decoder layer it belongs to, or None (embedding, final norm, head).
        op: what computes it, for people: an op type such as ``Q2GroupQueryAttention`` or ``Gemm``.
    """

    name: str
    layer: int | None
    op: str


@dataclass(frozen=True)
class ReferenceRun:
    """What one pass of the reference returns.

    Attributes:
        logits: per sequence, float32 ``[tokens, vocab]``.
        captures: per asked point, per sequence, float32 ``[tokens, width]``.
    """

    logits: Sequence[Float32Array]
    captures: Mapping[str, Sequence[Float32Array]]


class Reference(Protocol):
    """The PyTorch model, run in float32 with its weights streamed layer by layer."""

    def run(self, sequences: Sequence[Sequence[int]], capture: Collection[str] = ()) -> ReferenceRun:
        """Run all sequences, teacher-forced, in one pass over the weights.

        Each call reads the whole checkpoint, so parity calls it once, and once more only after a failure.

        Args:
            sequences: token ids; lengths may differ, each at least 1.
            capture: names of points whose values are wanted. ``captures`` holds exactly these.
        """


class EngineProbe(Protocol):
    """The engine under test."""

    def score(self, tokens: Sequence[int]) -> Float32Array:
        """Logits after each token: float32 ``[tokens, vocab]``."""

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        """Exactly ``n`` greedy tokens after ``prompt``, through the KV cache, ignoring end-of-text tokens."""

    def capture(self, tokens: Sequence[int], points: Collection[str]) -> dict[str, Float32Array]:
        """Run the engine with intermediate tensors exposed: float32 ``[tokens, width]`` per asked point."""

    def points(self) -> list[PointInfo]:
        """What :meth:`capture` can expose, in the order of computation."""
