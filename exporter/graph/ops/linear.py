"""Q2Linear: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor

from q2export.contracts.opspec import LINEAR
from q2export.exporter.graph.ops.library import define


def linear_reference(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight.T + bias`` in float32.

    Args:
        input: float32 ``[tokens, in]``.
        weight: ``[out, in]``, any floating-point type.
        bias: float32 ``[out]``, or None.
    """
    return torch.nn.functional.linear(input, weight.to(torch.float32), bias)


linear = define(LINEAR, linear_reference)

BODY = """
    wide = CastLike (weight, input)
    output = Gemm <transB = 1> (input, wide, bias)
"""
