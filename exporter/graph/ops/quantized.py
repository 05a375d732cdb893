"""Q2QuantizedLinear and Q2QuantizedMoE: torch operators and ONNX function bodies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from q2export.contracts.opspec import QUANTIZED_LINEAR, QUANTIZED_MOE
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops.library import define
from q2export.exporter.graph.ops.moe import COMBINE, DISPATCH, route

_LARGEST_CODE = 127


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, block_size: int) -> Tensor:
    """Weights in float32.

    Args:
        codes: uint8 ``[..., out, in * bits / 8]``, or the same bytes as int32 words.
        scale: float16 ``[..., out, in / block_size]``.
        zero_point: uint8 ``[..., out, ceil(in / block_size * bits / 8)]``, packed as the codes; None: in the
            middle.
        bits: of a code, 4 or 8.
        block_size: elements that share a scale.

    Returns:
        ``[..., out, in]``.
    """
    blocks = _unpack(codes.view(torch.uint8), bits).to(torch.float32).unflatten(-1, (-1, block_size))
    if zero_point is None:
        centre = torch.tensor(float(1 << (bits - 1)))
    else:
        centre = _unpack(zero_point, bits)[..., : scale.shape[-1], None].to(torch.float32)
    weights: Tensor = ((blocks - centre) * scale.to(torch.float32)[..., None]).flatten(-2)
    return weights


def _unpack(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def round_to_int8(x: Tensor, block_size: int) -> Tensor:
    """Every block of the last axis rounded to multiples of its largest magnitude over 127."""
    blocks = x.unflatten(-1, (-1, block_size))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / _LARGEST_CODE
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    rounded: Tensor = ((blocks * inverse).round() * scale).flatten(-2)
    return rounded


def quantized_linear_reference(
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block_size: int,
    int8_activations: int,
) -> Tensor:
    """``input @ weight.T + bias`` over dequantized weights; shapes as in ``opspec.QUANTIZED_LINEAR``."""
    x = round_to_int8(input, block_size) if int8_activations else input
    matrix = dequantize(weight, weight_scale, weight_zero_point, bits, block_size)
    return functional.linear(x, matrix, bias)


quantized_linear = define(QUANTIZED_LINEAR, quantized_linear_reference)


def quantized_moe_reference(
    hidden: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    gate_up_zero_point: Tensor | None,
    down_zero_point: Tensor | None,
    num_experts: int,
    top_k: int,
    norm_topk_prob: int,
    bits: int,
    block_size: int,
    int8_activations: int = 0,
) -> Tensor:
    """Send every token to its experts and add up what they return, weighted.

    Shapes are as in ``opspec.QUANTIZED_MOE``.
    """
    weight, index = route(router_logits, top_k, bool(norm_topk_prob))
    output = torch.zeros(hidden.shape, dtype=torch.float32)
    attributes = (bits, block_size, int8_activations)
    for expert in index.unique().tolist():
        token, slot = (index == expert).nonzero(as_tuple=True)
        points = [None if each is None else each[expert] for each in (gate_up_zero_point, down_zero_point)]
        rows = hidden[token].to(torch.float32)
        both = quantized_linear_reference(
            rows, gate_up[expert], gate_up_scale[expert], points[0], None, *attributes
        )
        activated = functional.silu(both[:, 0::2]) * both[:, 1::2]
        result = quantized_linear_reference(
            activated, down[expert], down_scale[expert], points[1], None, *attributes
        )
        output.index_add_(0, token, result * weight[token, slot, None])
    return output.to(hidden.dtype)


quantized_moe = define(QUANTIZED_MOE, quantized_moe_reference)

CODES_OF = {
    8: """
    {name} = Identity ({packed})
""",
    4: """
    {name}_mask = Constant <value = uint8[1] {{15}}> ()
    {name}_shift = Constant <value = uint8[1] {{4}}> ()
    {name}_low = BitwiseAnd ({packed}, {name}_mask)
    {name}_high = BitShift <direction = "RIGHT"> ({packed}, {name}_shift)
    {name}_low_column = Unsqueeze ({name}_low, last)
    {name}_high_column = Unsqueeze ({name}_high, last)
    {name} = Concat <axis = -1> ({name}_low_column, {name}_high_column)
""",
}

_LINEAR = """
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    size = Constant <value_int: int = @block_size> ()
    size_1d = Reshape (size, last)
    input_shape = Shape (input)
    tokens = Shape <start = 0, end = 1> (input)
    block_count = Shape <start = 1, end = 2> (weight_scale)
    blocks_shape = Concat <axis = 0> (tokens, block_count, size_1d)
    blocks = Reshape (input, blocks_shape)
    magnitude = Abs (blocks)
    largest = ReduceMax (magnitude, last)
    largest_code = Constant <value_float = 127.0> ()
    scale = Div (largest, largest_code)
    has_scale = Greater (scale, zero)
    divisor = Where (has_scale, scale, one)
    inverse = Div (one, divisor)
    scaled = Mul (blocks, inverse)
    whole = Round (scaled)
    rounded = Mul (whole, scale)
    rounds = Constant <value_int: int = @int8_activations> ()
    is_rounded = Cast <to = 9> (rounds)
    chosen = Where (is_rounded, rounded, blocks)
    x = Reshape (chosen, input_shape)

    scale_shape = Shape (weight_scale)
    outs = Shape <start = 0, end = 1> (weight_scale)
    code_shape = Concat <axis = 0> (scale_shape, size_1d)
{codes}
    codes_by_block = Reshape (codes, code_shape)
    codes_wide = CastLike (codes_by_block, input)
{centre}
    centred = Sub (codes_wide, centre)
    weight_scale_wide = CastLike (weight_scale, input)
    weight_scale_column = Unsqueeze (weight_scale_wide, last)
    values = Mul (centred, weight_scale_column)
    matrix_shape = Concat <axis = 0> (outs, last)
    matrix = Reshape (values, matrix_shape)
    output = Gemm <transB = 1> (x, matrix, bias)
"""

_ZERO_POINTS = """
    point_row_shape = Concat <axis = 0> (outs, last)
    point_rows = Reshape (points, point_row_shape)
    first = Constant <value_ints = [0]> ()
    columns = Constant <value_ints = [1]> ()
    point_matrix = Slice (point_rows, first, block_count, columns)
    point_wide = CastLike (point_matrix, input)
    centre = Unsqueeze (point_wide, last)
"""


def linear_body(scheme: Scheme) -> str:
    """Function body of ``Q2QuantizedLinear``: all weights of a graph have one scheme.

    An input of a function that may be absent can only be handed on as such, hence a body for symmetric
    schemes, which does not read the zero points, and one for others, which wants them.
    """
    unpack = CODES_OF[scheme.bits]
    centre = f"    centre = Constant <value_float = {scheme.default_zero_point}.0> ()\n"
    if not scheme.symmetric:
        centre = unpack.format(name="points", packed="weight_zero_point") + _ZERO_POINTS
    return _LINEAR.format(codes=unpack.format(name="codes", packed="weight"), centre=centre)


_EXPERTS = """
    start_of_all = Constant <value_ints = [0]> ()
    past_all = Constant <value_ints = [2147483647]> ()
    every_second = Constant <value_ints = [2]> ()
    hidden_size = Shape <start = 1, end = 2> (hidden)
    nothing_shape = Concat <axis = 0> (start_of_all, hidden_size)
    nothing = ConstantOfShape (nothing_shape)
    go = Cast <to = 9> (one)
    rows_wide = Cast <to = 1> (rows)
{constants}    end_of_all, results = Loop <body = experts_loop
        (int64 expert_number, bool go_in, int64[1] start, float[done, width] done_rows)
        => (bool go_out, int64[1] end, float[more, width] more_rows) {{
            go_out = Identity (go_in)
            expert_1d = Unsqueeze (expert_number, axis0)
            count = Gather (counts, expert_1d)
            end = Add (start, count)
            own = Slice (rows_wide, start, end, axis0)
{both}
            gate_rows = Slice (both, start_of_all, past_all, axis1, every_second)
            up_rows = Slice (both, axis1, past_all, axis1, every_second)
            sigmoid = Sigmoid (gate_rows)
            silu = Mul (gate_rows, sigmoid)
            activated = Mul (silu, up_rows)
{result}
            more_rows = Concat <axis = 0> (done_rows, result)
        }}> (experts, go, start_of_all, nothing)
"""

_MATRIX = """
            {name}_codes = Gather ({name}, expert_number)
            {name}_scales = Gather ({name}_scale, expert_number)
{points}
            {output} = q2export.Q2QuantizedLinear
                <bits: int = @bits, block_size: int = @block_size, int8_activations: int = @int8_activations>
                ({input}, {name}_codes, {name}_scales, {point_name}, "")
"""

_WORDS_CONSTANTS = """
    size = Constant <value_int: int = @block_size> ()
    size_1d = Reshape (size, last)
    centre = Constant <value_float = {centre}.0> ()
    shifts = Constant <value = uint32[{per_word}] {{{shifts}}}> ()
    mask = Constant <value = uint32[1] {{{mask}}}> ()
"""

_WORDS_MATRIX = """
            {name}_words = Gather ({name}, expert_number)
            {name}_unsigned = Cast <to = 12> ({name}_words)
            {name}_column = Unsqueeze ({name}_unsigned, last)
            {name}_shifted = BitShift <direction = "RIGHT"> ({name}_column, shifts)
            {name}_codes = BitwiseAnd ({name}_shifted, mask)
            {name}_scales = Gather ({name}_scale, expert_number)
            {name}_shape = Shape ({name}_scales)
            {name}_rows = Shape <start = 0, end = 1> ({name}_scales)
            {name}_block_shape = Concat <axis = 0> ({name}_shape, size_1d)
            {name}_blocks = Reshape ({name}_codes, {name}_block_shape)
            {name}_wide = Cast <to = 1> ({name}_blocks)
            {name}_centred = Sub ({name}_wide, centre)
            {name}_scales_wide = Cast <to = 1> ({name}_scales)
            {name}_scale_column = Unsqueeze ({name}_scales_wide, last)
            {name}_values = Mul ({name}_centred, {name}_scale_column)
            {name}_matrix_shape = Concat <axis = 0> ({name}_rows, last)
            {name}_matrix = Reshape ({name}_values, {name}_matrix_shape)
            {output} = Gemm <transB = 1> ({input}, {name}_matrix)
"""

_PRODUCTS = (("gate_up", "own", "both"), ("down", "activated", "result"))
"""Of an expert: matrix, input and output."""


def moe_body(scheme: Scheme) -> str:
    """Function body of ``Q2QuantizedMoE``: one expert after the other, for any number of them."""
    products = {}
    for name, rows, output in _PRODUCTS:
        point_name = '""' if scheme.symmetric else f"{name}_points"
        points = "" if scheme.symmetric else f"{point_name} = Gather ({name}_zero_point, expert_number)"
        products[output] = _MATRIX.format(
            name=name, input=rows, output=output, points=points, point_name=point_name
        )
    return DISPATCH + _EXPERTS.format(constants="", **products) + COMBINE


def words_moe_body(scheme: Scheme) -> str:
    """The same where codes are int32 words, for symmetric schemes and activations that are not rounded."""
    shifts = range(0, 32, scheme.bits)
    constants = _WORDS_CONSTANTS.format(
        centre=scheme.default_zero_point,
        per_word=len(shifts),
        shifts=", ".join(map(str, shifts)),
        mask=scheme.levels - 1,
    )
    products = {
        output: _WORDS_MATRIX.format(name=name, input=rows, output=output) for name, rows, output in _PRODUCTS
    }
    return DISPATCH + _EXPERTS.format(constants=constants, **products) + COMBINE
