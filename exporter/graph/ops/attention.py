"""Q2GroupQueryAttention: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor

from q2export.contracts.opspec import ATTENTION
from q2export.exporter.graph.ops.library import define


def append_to_cache(cache: Tensor, new: Tensor, past_lengths: Tensor, query_lengths: Tensor) -> Tensor:
    """Return a copy of ``cache`` with each row's new tokens written at its past length.

    Args:
        cache: ``[batch, heads, capacity, head_dim]``.
        new: ``[batch, sequence, heads, head_dim]``; only the first ``query_lengths[b]`` of row ``b`` are
            written, rounded to the type of the cache.
        past_lengths: int64 ``[batch]``.
        query_lengths: int64 ``[batch]``.
    """
    present = cache.clone()
    for row, (past, length) in enumerate(zip(past_lengths.tolist(), query_lengths.tolist(), strict=True)):
        present[row, :, past : past + length] = new[row, :length].transpose(0, 1)
    return present


def attention_mask(
    capacity: int, sequence: int, past_lengths: Tensor, query_lengths: Tensor, sliding_window: int
) -> Tensor:
    """Return bool ``[batch, sequence, capacity]``, true where the query token sees the cached token."""
    key_position = torch.arange(capacity)[None, None, :]
    query_position = (past_lengths[:, None] + torch.arange(sequence))[:, :, None]
    mask = (key_position <= query_position) & (key_position < (past_lengths + query_lengths)[:, None, None])
    if sliding_window:
        mask = mask & (key_position > query_position - sliding_window)
    return mask


def group_query_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_lengths: Tensor,
    query_lengths: Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    sliding_window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Append to the cache, then attend; see :data:`q2export.contracts.opspec.ATTENTION` for shapes.

    Scores and softmax are float32. Follows transformers ``models/qwen2/modeling_qwen2.py``
    (``eager_attention_forward``) and, for the window, ``masking_utils.sliding_window_overlay``.
    """
    batch, sequence, _, head_dim = query.shape
    present_key = append_to_cache(past_key, key, past_lengths, query_lengths)
    present_value = append_to_cache(past_value, value, past_lengths, query_lengths)
    total = int((past_lengths + query_lengths).max())
    keys = present_key[:, :, :total].to(torch.float32)  # [B, Hkv, total, D]
    values = present_value[:, :, :total].to(torch.float32)
    grouped = query.to(torch.float32).view(batch, sequence, num_kv_heads, num_heads // num_kv_heads, head_dim)
    mask = attention_mask(total, sequence, past_lengths, query_lengths, sliding_window)
    # A row shorter than the longest has unspecified cache positions below `total`: they may hold NaN.
    filled = torch.arange(total)[None, :] < (past_lengths + query_lengths)[:, None]
    values = values.masked_fill(~filled[:, None, :, None], 0.0)
    scores = torch.einsum("bshgd,bhcd->bhgsc", grouped, keys) * scale
    scores = scores.masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
    output = torch.einsum("bhgsc,bhcd->bshgd", scores.softmax(dim=-1), values)
    return output.reshape(query.shape).to(query.dtype), present_key, present_value


group_query_attention = define(ATTENTION, group_query_attention_reference)

BODY = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis2 = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    kv_heads = Constant <value_int: int = @num_kv_heads> ()
    kv_heads_1d = Unsqueeze (kv_heads, axis0)
    heads = Constant <value_int: int = @num_heads> ()
    group = Div (heads, kv_heads)
    group_1d = Unsqueeze (group, axis0)
    batch_dim = Shape <start = 0, end = 1> (query)
    sequence_dim = Shape <start = 1, end = 2> (query)
    head_dim = Shape <start = 3, end = 4> (query)
    capacity_dim = Shape <start = 2, end = 3> (past_key)
    sequence = Squeeze (sequence_dim, axis0)
    capacity = Squeeze (capacity_dim, axis0)

    slot = Range (zero, capacity, one)
    past_column = Unsqueeze (past_lengths, axis1)
    query_column = Unsqueeze (query_lengths, axis1)
    total_column = Add (past_column, query_column)
    source = Sub (slot, past_column)
    not_before = GreaterOrEqual (source, zero)
    not_after = Less (source, query_column)
    is_new = And (not_before, not_after)
    last_token = Sub (sequence, one)
    source_clipped = Clip (source, zero, last_token)
    source_index = Unsqueeze (source_clipped, last)
    is_new_heads = Unsqueeze (is_new, axis1)
    is_new_mask = Unsqueeze (is_new_heads, last)
    key_slots = GatherND <batch_dims = 1> (key, source_index)
    value_slots = GatherND <batch_dims = 1> (value, source_index)
    key_heads = Transpose <perm = [0, 2, 1, 3]> (key_slots)
    value_heads = Transpose <perm = [0, 2, 1, 3]> (value_slots)
    key_stored = CastLike (key_heads, past_key)
    value_stored = CastLike (value_heads, past_value)
    present_key = Where (is_new_mask, key_stored, past_key)
    present_value = Where (is_new_mask, value_stored, past_value)

    step = Range (zero, sequence, one)
    query_position = Add (past_column, step)
    query_position_column = Unsqueeze (query_position, last)
    filled = Less (slot, total_column)
    filled_row = Unsqueeze (filled, axis1)
    causal = LessOrEqual (slot, query_position_column)
    window = Constant <value_int: int = @sliding_window> ()
    has_window = Greater (window, zero)
    no_window = Constant <value_int = 4611686018427387904> ()
    window_length = Where (has_window, window, no_window)
    oldest = Sub (query_position_column, window_length)
    in_window = Greater (slot, oldest)
    causal_window = And (causal, in_window)
    visible = And (causal_window, filled_row)
    visible_heads = Unsqueeze (visible, axis1)
    mask = Unsqueeze (visible_heads, axis1)

    split_shape = Concat <axis = 0> (batch_dim, sequence_dim, kv_heads_1d, group_1d, head_dim)
    query_wide = Cast <to = 1> (query)
    query_groups = Reshape (query_wide, split_shape)
    query_heads = Transpose <perm = [0, 2, 3, 1, 4]> (query_groups)
    key_wide = Cast <to = 1> (present_key)
    value_wide = Cast <to = 1> (present_value)
    filled_heads = Unsqueeze (filled_row, last)
    zero_value = Constant <value_float = 0.0> ()
    value_clean = Where (filled_heads, value_wide, zero_value)
    key_transposed = Transpose <perm = [0, 1, 3, 2]> (key_wide)
    key_matrix = Unsqueeze (key_transposed, axis2)
    value_matrix = Unsqueeze (value_clean, axis2)
    scores = MatMul (query_heads, key_matrix)
    factor = Constant <value_float: float = @scale> ()
    scaled = Mul (scores, factor)
    lowest = Constant <value_float = -3.4028234663852886e38> ()
    masked = Where (mask, scaled, lowest)
    probability = Softmax <axis = -1> (masked)
    mixed = MatMul (probability, value_matrix)
    by_token = Transpose <perm = [0, 3, 1, 2, 4]> (mixed)
    output_shape = Shape (query)
    merged = Reshape (by_token, output_shape)
    output = CastLike (merged, query)
"""
