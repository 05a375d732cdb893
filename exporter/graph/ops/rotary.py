"""Q2RotaryEmbedding: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor

from q2export.contracts.opspec import ROTARY
from q2export.exporter.graph.ops.library import define


def rotary_embedding_reference(
    x: Tensor, position_ids: Tensor, inv_freq: Tensor, attention_factor: float
) -> Tensor:
    """Rotate ``x`` by its positions.

    Args:
        x: ``[batch, sequence, heads, head_dim]``, any floating-point type.
        position_ids: int64 ``[batch, sequence]``.
        inv_freq: float32 ``[head_dim / 2]``, radians per position.
        attention_factor: multiplies cos and sin (YaRN); 1 otherwise.

    Returns:
        The shape and dtype of ``x``. Follows transformers ``models/qwen2/modeling_qwen2.py``
        (``Qwen2RotaryEmbedding``, ``apply_rotary_pos_emb``), with the rotation itself in float32.
    """
    angle = position_ids.to(torch.float32)[:, :, None, None] * inv_freq  # [B, S, 1, D/2]
    cos = angle.cos() * attention_factor
    sin = angle.sin() * attention_factor
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


rotary_embedding = define(ROTARY, rotary_embedding_reference)

BODY = """
    position = Cast <to = 1> (position_ids)
    last = Constant <value_ints = [-1]> ()
    heads = Constant <value_ints = [2]> ()
    column = Unsqueeze (position, last)
    row = Mul (column, inv_freq)
    angle = Unsqueeze (row, heads)
    factor = Constant <value_float: float = @attention_factor> ()
    unit_cos = Cos (angle)
    unit_sin = Sin (angle)
    cos = Mul (unit_cos, factor)
    sin = Mul (unit_sin, factor)
    wide = Cast <to = 1> (x)
    first, second = Split <axis = -1, num_outputs = 2> (wide)
    first_cos = Mul (first, cos)
    second_sin = Mul (second, sin)
    second_cos = Mul (second, cos)
    first_sin = Mul (first, sin)
    low = Sub (first_cos, second_sin)
    high = Add (second_cos, first_sin)
    rotated = Concat <axis = -1> (low, high)
    y = CastLike (rotated, x)
"""
