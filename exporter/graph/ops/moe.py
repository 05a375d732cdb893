"""Q2MoE: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from q2export.contracts.opspec import MOE
from q2export.exporter.graph.ops.library import define
from q2export.exporter.graph.ops.linear import rounded_for


def route(router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """Choose the experts of every token.

    Args:
        router_logits: ``[tokens, num_experts]``.
        top_k: experts per token.
        norm_topk_prob: divide the chosen probabilities by their sum.

    Returns:
        float32 weights and int64 expert indices, both ``[tokens, top_k]``. Follows transformers
        ``models/qwen2_moe/modeling_qwen2_moe.py`` (``Qwen2MoeTopKRouter``), except that of equal logits the
        lowest index comes first: ``torch.topk`` leaves open which it takes.
    """
    wide = router_logits.to(torch.float32)
    index = wide.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weight = wide.softmax(dim=-1).gather(-1, index)
    if norm_topk_prob:
        weight = weight / weight.sum(dim=-1, keepdim=True)
    return weight, index


def moe_reference(
    hidden: Tensor,
    router_logits: Tensor,
    gate: list[Tensor],
    up: list[Tensor],
    down: list[Tensor],
    num_experts: int,
    top_k: int,
    norm_topk_prob: int,
    bfloat16_activations: int = 0,
) -> Tensor:
    """Send every token to its experts and add up what they return, weighted; shapes as in ``opspec.MOE``.

    Raises:
        ValueError: activations are to be rounded for weights of another type than bfloat16.
    """

    def multiplied(rows: Tensor, weight: Tensor) -> Tensor:
        """``rows @ weight.T``."""
        rows = rounded_for(weight, rows) if bfloat16_activations else rows
        return functional.linear(rows, weight.to(hidden.dtype))

    weight, index = route(router_logits, top_k, bool(norm_topk_prob))
    output = torch.zeros(hidden.shape, dtype=torch.float32)
    for expert in index.unique().tolist():
        token, slot = (index == expert).nonzero(as_tuple=True)
        rows = hidden[token]
        activated = functional.silu(multiplied(rows, gate[expert])) * multiplied(rows, up[expert])
        result = multiplied(activated, down[expert]).to(torch.float32)
        output.index_add_(0, token, result * weight[token, slot, None])
    return output.to(hidden.dtype)


moe = define(MOE, moe_reference)

# Routing, and the slots of all tokens sorted by expert: `rows` of `counts` tokens per expert.
DISPATCH = """
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    experts = Constant <value_int: int = @num_experts> ()
    k = Constant <value_int: int = @top_k> ()
    k_1d = Unsqueeze (k, axis0)
    router_wide = Cast <to = 1> (router_logits)
    probability = Softmax <axis = -1> (router_wide)
    logit, expert = TopK <axis = -1> (router_wide, k_1d)
    chosen = GatherElements <axis = 1> (probability, expert)
    chosen_sum = ReduceSum (chosen, last)
    norm = Constant <value_int: int = @norm_topk_prob> ()
    has_norm = Cast <to = 9> (norm)
    unit = Constant <value_float = 1.0> ()
    divisor = Where (has_norm, chosen_sum, unit)
    weight = Div (chosen, divisor)

    expert_flat = Reshape (expert, last)
    slots = Shape (expert_flat)
    expert_sorted, order = TopK <axis = 0, largest = 0> (expert_flat, slots)
    token = Div (order, k)
    rows = Gather <axis = 0> (hidden, token)
    expert_row = Range (zero, experts, one)
    expert_column = Unsqueeze (expert_flat, axis1)
    is_expert = Equal (expert_column, expert_row)
    is_expert_count = Cast <to = 7> (is_expert)
    counts = ReduceSum <keepdims = 0> (is_expert_count, axis0)
"""

_ROUND = """
    bfloat16_activations = Constant <value_int: int = @bfloat16_activations> ()
    is_rounded = Cast <to = 9> (bfloat16_activations)
    rows_narrow = Cast <to = 16> (rows)
    rows_rounded = CastLike (rows_narrow, hidden)
    rows_multiplied = Where (is_rounded, rows_rounded, rows)
"""

_WIDEN = """
    gate_wide_{e} = CastLike (gate_{e}, hidden)
    up_wide_{e} = CastLike (up_{e}, hidden)
    down_wide_{e} = CastLike (down_{e}, hidden)
"""

_EXPERT = """
    gate_rows_{e} = Gemm <transB = 1> (rows_{e}, gate{wide}_{e})
    up_rows_{e} = Gemm <transB = 1> (rows_{e}, up{wide}_{e})
    sigmoid_{e} = Sigmoid (gate_rows_{e})
    silu_{e} = Mul (gate_rows_{e}, sigmoid_{e})
    activated_{e} = Mul (silu_{e}, up_rows_{e})
"""

_ROUND_ACTIVATED = """
    activated_narrow_{e} = Cast <to = 16> (activated_{e})
    activated_rounded_{e} = CastLike (activated_narrow_{e}, hidden)
    activated_multiplied_{e} = Where (is_rounded, activated_rounded_{e}, activated_{e})
"""

_DOWN = """
    result_{e} = Gemm <transB = 1> (activated{multiplied}_{e}, down{wide}_{e})
"""

# From the `results` of those rows to the weighted sum per token.
COMBINE = """
    sorted_again, inverse = TopK <axis = 0, largest = 0> (order, slots)
    by_slot = Gather <axis = 0> (results, inverse)
    hidden_dim = Shape <start = 1, end = 2> (hidden)
    combine_shape = Concat <axis = 0> (last, k_1d, hidden_dim)
    by_token = Reshape (by_slot, combine_shape)
    by_token_wide = Cast <to = 1> (by_token)
    weight_column = Unsqueeze (weight, last)
    weighted = Mul (by_token_wide, weight_column)
    summed = ReduceSum <keepdims = 0> (weighted, axis1)
    output = CastLike (summed, hidden)
"""


def body(num_experts: int, *, widen: bool = False) -> str:
    """Return the function body for ``num_experts`` experts.

    With ``widen``, their weights are of another type than what they multiply, which may be rounded to it.

    Token slots are sorted by expert and split, so that every expert multiplies just the rows sent to it
    (none, for an idle one) and its weights are read where they are: nothing is stacked. Ties in the sort do
    not matter, the order is undone by its own inverse.
    """
    names = [str(expert) for expert in range(num_experts)]
    wide, multiplied = ("_wide", "_multiplied") if widen else ("", "")
    split = f"    {', '.join(f'rows_{e}' for e in names)} = Split <axis = 0> (rows{multiplied}, counts)\n"
    concat = f"    results = Concat <axis = 0> ({', '.join(f'result_{e}' for e in names)})\n"
    expert = _WIDEN + _EXPERT + _ROUND_ACTIVATED + _DOWN if widen else _EXPERT + _DOWN
    experts = "".join(expert.format(e=e, wide=wide, multiplied=multiplied) for e in names)
    return DISPATCH + (_ROUND if widen else "") + split + experts + concat + COMBINE
