"""The decoder in three parts that are traced separately: embedding, one layer, head.

Layers repeat, so the exporter traces one layer of each kind and stamps it out. The parts take and return
plain tensors; put together by name they are the whole model (``model.embed_tokens``, ``model.layers.N``,
``model.norm``, ``lm_head``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.graph.model.attention import SelfAttention
from q2export.exporter.graph.model.mlp import MLP
from q2export.exporter.graph.model.moe import SparseMoeBlock


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise ``[..., size]`` over its last axis."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class Embedding(nn.Module):
    """Token embedding and positions: the graph before the first layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor, past_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden ``[batch, sequence, hidden_size]`` and int64 position_ids ``[batch, sequence]``."""
        step = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.embed_tokens(input_ids), past_lengths.unsqueeze(1) + step


class DecoderLayer(nn.Module):
    """One pre-norm transformer layer, dense or sparse."""

    def __init__(self, config: ModelConfig, layer: int, attention_factor: float) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer, attention_factor)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.is_moe_layer(layer) and config.moe is not None:
            self.mlp: nn.Module = SparseMoeBlock(config.hidden_size, config.moe)
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        inv_freq: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        past_lengths: Tensor,
        query_lengths: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden ``[batch, sequence, hidden_size]`` and the two updated caches.

        Inside, tokens are one axis (``[batch * sequence, hidden_size]``): every matmul is then a
        plain two-dimensional one over weights in Hugging Face's [out, in] layout.
        """
        batch, sequence = position_ids.shape
        residual = hidden.reshape(-1, self.hidden_size)
        attended, present_key, present_value = self.self_attn(
            self.input_layernorm(residual),
            position_ids,
            inv_freq,
            (past_key, past_value),
            (past_lengths, query_lengths),
        )
        residual = residual + attended
        residual = residual + self.mlp(self.post_attention_layernorm(residual))
        return residual.view(batch, sequence, self.hidden_size), present_key, present_value


class Head(nn.Module):
    """Final norm and vocabulary projection of the positions asked for: the graph after the last layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor, logits_indices: Tensor) -> Tensor:
        """Return float32 logits ``[batch, n, vocab_size]``.

        Args:
            hidden: ``[batch, sequence, hidden_size]``.
            logits_indices: int64 ``[batch, n]``, positions within the sequence.
        """
        batch, sequence, size = hidden.shape
        first = torch.arange(batch, device=hidden.device).unsqueeze(1) * sequence
        rows = hidden.reshape(-1, size).index_select(0, (first + logits_indices).reshape(-1))
        logits = self.lm_head(self.model["norm"](rows)).to(torch.float32)
        result: Tensor = logits.view(batch, logits_indices.shape[1], self.lm_head.out_features)
        return result
