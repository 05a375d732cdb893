"""Grouped-query self-attention of Qwen2 over the custom ops."""

from __future__ import annotations

from torch import Tensor, nn

from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.graph.ops.attention import group_query_attention
from q2export.exporter.graph.ops.rotary import rotary_embedding


class RotaryEmbedding(nn.Module):
    """The rotation of queries or keys, as a module so that its output has a name."""

    def __init__(self, attention_factor: float) -> None:
        super().__init__()
        self.attention_factor = attention_factor

    def forward(self, x: Tensor, position_ids: Tensor, inv_freq: Tensor) -> Tensor:
        """Rotate ``x [batch, sequence, heads, head_dim]``; see ``opspec.ROTARY``."""
        rotated: Tensor = rotary_embedding(x, position_ids, inv_freq, self.attention_factor)
        return rotated


class CachedAttention(nn.Module):
    """The attention op of one layer, as a module so that its output has a name."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = config.head_dim**-0.5
        self.sliding_window = config.window(layer) or 0

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: tuple[Tensor, Tensor],
        lengths: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append and attend; see ``opspec.ATTENTION``. ``lengths`` is (past_lengths, query_lengths)."""
        output, present_key, present_value = group_query_attention(
            query,
            key,
            value,
            *past,
            *lengths,
            self.num_heads,
            self.num_kv_heads,
            self.scale,
            self.sliding_window,
        )
        return output, present_key, present_value


class SelfAttention(nn.Module):
    """Projections, rotation and attention of one decoder layer."""

    def __init__(self, config: ModelConfig, layer: int, attention_factor: float) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.rotary_q = RotaryEmbedding(attention_factor)
        self.rotary_k = RotaryEmbedding(attention_factor)
        self.attention = CachedAttention(config, layer)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        inv_freq: Tensor,
        past: tuple[Tensor, Tensor],
        lengths: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            hidden: ``[tokens, hidden_size]``, tokens = batch * sequence.
            position_ids: int64 ``[batch, sequence]``.
            inv_freq: float32 ``[head_dim / 2]``.
            past: key and value cache, each ``[batch, num_key_value_heads, capacity, head_dim]``.
            lengths: past_lengths and query_lengths, int64 ``[batch]``.

        Returns:
            ``[tokens, hidden_size]`` and the two updated caches.
        """
        batch, sequence = position_ids.shape
        query = self.q_proj(hidden).view(batch, sequence, -1, self.head_dim)
        key = self.k_proj(hidden).view(batch, sequence, -1, self.head_dim)
        value = self.v_proj(hidden).view(batch, sequence, -1, self.head_dim)
        query = self.rotary_q(query, position_ids, inv_freq)
        key = self.rotary_k(key, position_ids, inv_freq)
        output, present_key, present_value = self.attention(query, key, value, past, lengths)
        return self.o_proj(output.reshape(-1, self.o_proj.in_features)), present_key, present_value
