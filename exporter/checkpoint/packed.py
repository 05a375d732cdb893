"""The packed form of a quantized weight, the same for every target.

Next to a model's other tensors, a quantized weight ``NAME.weight [out, in]`` is held as

======================== ===== =========================== ===================================================
tensor                   dtype shape                       contents
======================== ===== =========================== ===================================================
NAME.weight              U8    [out, in * bits / 8]        codes; of two nibbles, the low one is first
NAME.weight_scale        F16   [out, in / block_size]
NAME.weight_zero_point   U8    [out, ceil(in / block_size  packed as the codes; absent if symmetric
                               * bits / 8)]
NAME.weight_input_order  I32   [in]                        seldom there, see :class:`PackedWeight`
======================== ===== =========================== ===================================================

The bytes of the codes are those of an ONNX UINT4 (or UINT8) tensor ``[out, in]``, so they are mapped in
place. Weights that a kernel wants as one (all experts of a layer; the three projections of the attention,
gate and up) lie next to each other in the file, first their codes, then their scales, then their zero points,
so that the whole is in place, too.

Gate and up of a routed expert, where both are quantized, are one tensor whose rows alternate (gate 0, up 0,
gate 1, ...), so that one matmul gives both side by side: ``experts.N.gate_up_proj.weight``
``[2 * intermediate, ...]``, with its scales and zero points likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from q2export.contracts.dtypes import BY_NAME
from q2export.contracts.quantization import Scheme

SCALE_DTYPE = BY_NAME["float16"]
"""Of scales: two bytes to a block. What it does not hold is refused where the packed form is made."""

SCALE_SUFFIX, ZERO_POINT_SUFFIX, INPUT_ORDER_SUFFIX = "_scale", "_zero_point", "_input_order"


@dataclass(frozen=True)
class PackedWeight:
    """Names and shapes of what holds one quantized weight.

    Attributes:
        name: Hugging Face name of the weight, such as ``model.layers.0.mlp.up_proj.weight``.
        shape: of the weight, ``(out, in)``; ``in`` is a multiple of the block size.
        scheme: how it is quantized.
        tensor: the stored tensor that holds its rows, another than ``name`` only where rows alternate.
        first_row: of the tensor, holds row 0 of the weight.
        row_step: rows of the tensor per row of the weight: 1, or the number of weights that alternate.
        input_order: name of the int32 tensor ``[in]`` with the order of its columns; None where they are in
            order. Packed column ``j`` multiplies element ``order[j]`` of the input: the graph gathers the
            last axis of the activations with it. All weights that read the same input have the same order,
            which the first of them holds, so one ``Gather`` serves a fused matrix and all experts.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    tensor: str = ""
    first_row: int = 0
    row_step: int = 1
    input_order: str | None = None

    def __post_init__(self) -> None:
        if not self.tensor:
            object.__setattr__(self, "tensor", self.name)

    @property
    def is_routed_expert(self) -> bool:
        """Whether it is a matrix of an expert that a router chooses."""
        return ".mlp.experts." in self.name

    @property
    def blocks(self) -> int:
        """Blocks per row."""
        return self.shape[1] // self.scheme.block_size

    @property
    def rows(self) -> int:
        """Rows of the tensors that hold the weight."""
        return self.shape[0] * self.row_step

    @property
    def codes_shape(self) -> tuple[int, int]:
        """Shape of the tensor ``tensor``, uint8."""
        return self.rows, self.shape[1] * self.scheme.bits // 8

    @property
    def scale_name(self) -> str:
        """Name of the scales, of :data:`SCALE_DTYPE`."""
        return self.tensor + SCALE_SUFFIX

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of the scales."""
        return self.rows, self.blocks

    @property
    def zero_point_name(self) -> str | None:
        """Name of the zero points, uint8; None where the scheme is symmetric."""
        return None if self.scheme.symmetric else self.tensor + ZERO_POINT_SUFFIX

    @property
    def zero_point_shape(self) -> tuple[int, int]:
        """Shape of the packed zero points."""
        return self.rows, -(-self.blocks * self.scheme.bits // 8)

    @property
    def holds_input_order(self) -> bool:
        """Whether the order is this weight's own, and not another's that it shares."""
        return self.input_order == self.name + INPUT_ORDER_SUFFIX

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that its values come from."""
        optional = (name for name in (self.zero_point_name, self.input_order) if name is not None)
        return self.tensor, self.scale_name, *optional

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales and zero points of this weight alone."""
        zero_points = 0 if self.scheme.symmetric else math.prod(self.zero_point_shape)
        held = math.prod(self.codes_shape) + SCALE_DTYPE.itemsize * math.prod(self.scale_shape) + zero_points
        return held // self.row_step
