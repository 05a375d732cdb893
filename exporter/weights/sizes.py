"""What the weights of a graph will take, from headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from q2export.contracts.dtypes import BY_NAME, BY_SAFETENSORS
from q2export.exporter.checkpoint.packed import SCALE_DTYPE, PackedWeight
from q2export.exporter.checkpoint.parameters import EMBEDDING, expected_parameters
from q2export.exporter.weights.plan import WeightPlan


@dataclass(frozen=True)
class PlannedBytes:
    """Bytes of weights.

    Attributes:
        in_place: read from the files of the checkpoint, or of the quantized one made of it.
        converted: written anew. quantized: of either, those of quantized weights.
    """

    in_place: int
    converted: int
    quantized: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_place + self.converted


def planned_bytes(plan: WeightPlan, target: str, dtype: str) -> PlannedBytes:
    """Return what a graph of ``target`` and ``dtype`` will read.

    Args:
        plan: of the weights.
        target: see :data:`q2export.exporter.export.Target`.
        dtype: of weights and activations.
    """
    in_place = converted = 0
    for name in expected_parameters(plan.config):  # without the copy of a tied head some checkpoints hold
        if name in plan.packed:
            continue
        ref = plan.tensors[name]
        if BY_SAFETENSORS[ref.dtype].name == dtype or (
            target == "onnxruntime" and len(ref.shape) == 2  # whatever their type, see LowerLinear
        ):
            in_place += ref.nbytes
        else:
            converted += math.prod(ref.shape) * BY_NAME[dtype].itemsize
    tied, weights = plan.config.tie_word_embeddings, plan.packed.values()
    parts = [_quantized(weight, target, dtype, tied) for weight in weights]
    placed, written = (sum(column) for column in zip(*parts, strict=True)) if parts else (0, 0)
    orders = {weight.input_order: weight.shape[1] * 4 for weight in weights if weight.input_order}
    quantized = placed + written + sum(orders.values())
    return PlannedBytes(in_place + placed + sum(orders.values()), converted + written, quantized)


def _quantized(weight: PackedWeight, target: str, dtype: str, tied: bool) -> tuple[int, int]:
    """Bytes of one quantized weight in place, and written anew."""
    if target == "onnxruntime":
        return weight.nbytes, 0
    is_embedding = weight.name == EMBEDDING
    is_matmul = tied or not is_embedding
    rows = weight.shape[0]
    codes, scales = rows * weight.codes_shape[1], rows * weight.blocks
    if target in ("tensorrt", "onnxruntime-cuda") and weight.is_routed_expert:
        return weight.nbytes, 0
    if target == "onnxruntime-cuda":  # codes as they are, scales in the type of the graph
        if dtype == SCALE_DTYPE.name:
            return weight.nbytes, 0
        return codes, scales * BY_NAME[dtype].itemsize
    if target == "tensorrt":  # for matmuls signed codes and scales of its type; rows are gathered as they are
        placed = weight.nbytes if is_embedding else 0
        if not is_matmul:
            return placed, 0
        if dtype == SCALE_DTYPE.name:
            return placed or scales * SCALE_DTYPE.itemsize, codes
        return placed, codes + scales * BY_NAME[dtype].itemsize
    padded = weight.scheme.bits == 4 and weight.blocks % 2 == 1 and not weight.scheme.symmetric
    if not (padded and is_matmul):
        return weight.nbytes, 0
    unpadded = -(-rows * weight.blocks // 2)
    return (weight.nbytes if is_embedding else codes + scales * SCALE_DTYPE.itemsize), unpadded
