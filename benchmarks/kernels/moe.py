"""Mixture of experts: the kernel against a pipeline over ``torch.nn.functional.grouped_mm``, and float32.

Over packed weights also against the kernel over 16-bit ones; all peers have the dequantized weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.case import Case, Launch, MoeShape, Workload
from q2export.contracts import opspec
from q2export.exporter.graph.ops.quantized import dequantize
from q2export.plugins.tensorrt.torch_ops import implementation

BLOCK = 32


@dataclass(frozen=True)
class Inputs:
    """Hidden states, router logits and stacked weights; the kernel gets one view per expert."""

    hidden: Tensor  # [tokens, hidden_size]
    logits: Tensor  # [tokens, num_experts]
    gate_up: Tensor  # [num_experts, 2 * intermediate_size, hidden_size]
    down: Tensor  # [num_experts, hidden_size, intermediate_size]

    def experts(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gate, up and down of every expert."""
        gate, up = self.gate_up.chunk(2, dim=1)
        return list(gate.unbind()), list(up.unbind()), list(self.down.unbind())


def make_inputs(shape: MoeShape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random tensors of the magnitude trained ones have."""
    inner, outer = shape.intermediate_size, shape.hidden_size
    return Inputs(
        torch.randn(shape.tokens, outer, dtype=dtype, device=device),
        torch.randn(shape.tokens, shape.num_experts, dtype=dtype, device=device),
        torch.randn(shape.num_experts, 2 * inner, outer, dtype=dtype, device=device) * outer**-0.5,
        torch.randn(shape.num_experts, outer, inner, dtype=dtype, device=device) * inner**-0.5,
    )


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Float32 weights and indices ``[tokens, top_k]``, without normalisation."""
    weight, index = logits.float().softmax(-1).topk(top_k, dim=-1)
    return weight, index


def moe_workload(case: Case, device: torch.device, sets: int) -> Workload:
    """One layer's routed experts, routing included."""
    shape = case.shape
    assert isinstance(shape, MoeShape)
    inputs = [make_inputs(shape, case.torch_dtype, device) for _ in range(sets)]
    run = implementation(opspec.MOE, in_place=False)

    def over_16_bits(one: Inputs) -> Launch:
        experts = one.experts()
        return lambda: run(one.hidden, one.logits, *experts, shape.num_experts, shape.top_k, 0)

    over_packed: list[Launch] = []
    if shape.bits < 16:
        packed = [pack(shape, one) for one in inputs]
        over_packed = [launch_packed(shape, *each) for each in zip(inputs, packed, strict=True)]
    over_own = [over_16_bits(one) for one in inputs]
    workload = Workload(
        subject=over_packed or over_own,
        peers={},
        reference=exact(shape, inputs[0]),
        bytes_moved=moe_bytes(shape, inputs),
        flops=6 * shape.tokens * shape.top_k * shape.hidden_size * shape.intermediate_size,
    )
    if over_packed:
        workload.peers["16_bits"] = over_own
    if device.type == "cuda":
        workload.peers["grouped_mm"] = [lambda one=one: grouped(shape, one) for one in inputs]  # type: ignore[misc]
    return workload


def moe_bytes(shape: MoeShape, inputs: list[Inputs]) -> int:
    """Weights of the experts that are chosen, averaged over the sets, and the tokens in and out."""
    chosen = sum(len(route(one.logits, shape.top_k)[1].unique()) for one in inputs) / len(inputs)
    weights = chosen * 3 * shape.hidden_size * shape.intermediate_size
    width = 2.0 if shape.bits == 16 else shape.bits / 8 + 2 / BLOCK
    return int(width * weights + 4 * shape.tokens * shape.hidden_size)


def pack(shape: MoeShape, one: Inputs) -> list[Tensor]:
    """Random packed experts; the 16-bit weights of ``one`` become what they dequantize to, rounded."""
    operands: list[Tensor] = []
    for kind, matrices in enumerate((one.gate_up, one.down)):
        experts, rows, columns = matrices.shape
        size = (experts, rows, columns * shape.bits // 8)
        codes = torch.randint(256, size, dtype=torch.uint8, device=matrices.device)
        scale = torch.rand(experts, rows, columns // BLOCK, device=matrices.device) * 4
        scale = (scale / (1 << shape.bits) * columns**-0.5).half()
        for expert, target in enumerate(matrices):
            values = dequantize(codes[expert], scale[expert], None, shape.bits, BLOCK)
            target.copy_(torch.cat((values[0::2], values[1::2])) if kind == 0 else values)
        operands += [codes, scale]
    return operands


def launch_packed(shape: MoeShape, one: Inputs, operands: list[Tensor]) -> Launch:
    """The kernel over packed weights."""
    run = implementation(opspec.QUANTIZED_MOE, in_place=False)
    attributes = (shape.num_experts, shape.top_k, 0, shape.bits, BLOCK)
    return lambda: run(one.hidden, one.logits, *operands, None, None, *attributes)


def grouped(shape: MoeShape, one: Inputs) -> Tensor:
    """Sort token slots by expert, two grouped products with SwiGLU between them, unsort, weigh and sum."""
    weight, index = route(one.logits, shape.top_k)
    order = index.flatten().argsort(stable=True)
    counts = torch.zeros(shape.num_experts, dtype=torch.int32, device=one.hidden.device)
    counts = counts.scatter_add(0, index.flatten(), torch.ones_like(index.flatten(), dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = one.hidden[order // shape.top_k]
    gate, up = functional.grouped_mm(rows, one.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    activated = functional.silu(gate) * up
    result = functional.grouped_mm(activated, one.down.transpose(1, 2), offs=ends)
    by_slot = torch.empty_like(result)
    by_slot[order] = result
    by_token = by_slot.view(shape.tokens, shape.top_k, shape.hidden_size).float()
    return (by_token * weight[..., None]).sum(1).to(one.hidden.dtype)


def exact(shape: MoeShape, one: Inputs) -> Tensor:
    """Float32, expert by expert."""
    weight, index = route(one.logits, shape.top_k)
    output = torch.zeros(one.hidden.shape, device=one.hidden.device)
    for expert in index.unique().tolist():
        token, slot = (index == expert).nonzero(as_tuple=True)
        gate, up = (one.hidden[token].float() @ one.gate_up[expert].float().T).chunk(2, dim=-1)
        result = (functional.silu(gate) * up) @ one.down[expert].float().T
        output.index_add_(0, token, result * weight[token, slot, None])
    return output
