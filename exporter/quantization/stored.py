"""The stored form of a quantized weight, the same for every target.

Next to a model's other tensors, a quantized weight ``NAME.weight [out, in]`` is held as

======================== ===== ================================ ===========================================
tensor                   dtype shape                            contents
======================== ===== ================================ ===========================================
NAME.weight              U8    [out, in * bits / 8]             codes; of two nibbles, the low one is first
NAME.weight_scale        F32   [out, in / block_size]
NAME.weight_zero_point   U8    [out, ceil(in / block_size * bits / 8)]  packed as the codes; absent if symmetric
======================== ===== ================================ ===========================================

The bytes of the codes are those of an ONNX UINT4 (or UINT8) tensor ``[out, in]`` and of the operand ``B`` of
``com.microsoft.MatMulNBits``, so both are mapped in place. Weights that a kernel wants as one matrix (the three
projections of the attention, gate and up) lie next to each other in the file, first their codes, then their scales,
then their zero points, so that the joined matrix is in place, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from q2export.quantization import Scheme

SCALE_SUFFIX, ZERO_POINT_SUFFIX = "_scale", "_zero_point"


@dataclass(frozen=True)
class StoredWeight:
    """Names and shapes of what holds one quantized weight.

    Attributes:
        name: Hugging Face name of the weight, such as ``model.layers.0.mlp.up_proj.weight``.
        shape: of the weight, ``(out, in)``; ``in`` is a multiple of the block size.
        scheme: how it is quantized.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme

    @property
    def blocks(self) -> int:
        """Blocks per row."""
        return self.shape[1] // self.scheme.block_size

    @property
    def codes_shape(self) -> tuple[int, int]:
        """Shape of ``NAME.weight``, uint8."""
        return self.shape[0], self.shape[1] * self.scheme.bits // 8

    @property
    def scale_name(self) -> str:
        """Name of the scales, float32."""
        return self.name + SCALE_SUFFIX

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of the scales."""
        return self.shape[0], self.blocks

    @property
    def zero_point_name(self) -> str | None:
        """Name of the zero points, uint8; None where the scheme is symmetric."""
        return None if self.scheme.symmetric else self.name + ZERO_POINT_SUFFIX

    @property
    def zero_point_shape(self) -> tuple[int, int]:
        """Shape of the packed zero points."""
        return self.shape[0], -(-self.blocks * self.scheme.bits // 8)
