"""Q2SwiGLU: torch operator and ONNX function body."""

from __future__ import annotations

import torch
from torch import Tensor

from q2export.contracts.opspec import SWIGLU
from q2export.exporter.graph.ops.library import define


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``; both float32 ``[tokens, intermediate]``."""
    return torch.nn.functional.silu(gate) * up


swiglu = define(SWIGLU, swiglu_reference)

BODY = """
    sigmoid = Sigmoid (gate)
    silu = Mul (gate, sigmoid)
    output = Mul (silu, up)
"""
