"""Q2Linear: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor

from q2export.contracts.opspec import LINEAR
from q2export.exporter.graph.ops.library import define


def rounded_for(weight: Tensor, activations: Tensor) -> Tensor:
    """Round activations to bfloat16, to nearest, ties to even, and widen them again.

    Raises:
        ValueError: the weight that they are to be multiplied with is of another type.
    """
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"bfloat16_activations is 1, but the weight is {weight.dtype}, not bfloat16")
    return activations.to(torch.bfloat16).to(activations.dtype)


def linear_reference(input: Tensor, weight: Tensor, bias: Tensor | None, bfloat16_activations: int) -> Tensor:
    """``input @ weight.T + bias`` in float32.

    Args:
        input: float32 ``[tokens, in]``.
        weight: ``[out, in]``, any floating-point type.
        bias: float32 ``[out]``, or None.
        bfloat16_activations: 1: the input is rounded to bfloat16 first, as the weight is.

    Raises:
        ValueError: the input is to be rounded for a weight of another type.
    """
    if bfloat16_activations:
        input = rounded_for(weight, input)
    return torch.nn.functional.linear(input, weight.to(torch.float32), bias)


linear = define(LINEAR, linear_reference)

BODY = """
    bfloat16_activations = Constant <value_int: int = @bfloat16_activations> ()
    is_rounded = Cast <to = 9> (bfloat16_activations)
    narrow = Cast <to = 16> (input)
    rounded = CastLike (narrow, input)
    activations = Where (is_rounded, rounded, input)
    wide = CastLike (weight, input)
    output = Gemm <transB = 1> (activations, wide, bias)
"""
