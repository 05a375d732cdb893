"""How GPTQ and AWQ pack codes and zero points into 32-bit words, and the same bits in the packed form.

Both hold a weight ``[out, in]`` transposed. GPTQ packs codes along ``in`` and zero points along ``out``, the
first in the lowest bits (AutoGPTQ 0.7.1, ``nn_modules/qlinear/qlinear_cuda.py``, method ``pack``). AWQ in its
gemm version packs both along ``out``, the eight nibbles of a word in the order 0 2 4 6 1 3 5 7 (AutoAWQ
0.2.9, ``modules/linear/gemm.py``, ``WQLinear_GEMM.from_linear``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from q2export.exporter.checkpoint.published_config import PublishedQuantization

Words = npt.NDArray[np.uint32]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

WORD_BITS = 32
_AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight outputs nibble i of a word belongs to


class Packing(Protocol):
    """Where the codes and zero points of a weight ``[out, in]`` are in its tensors of 32-bit words."""

    @property
    def outputs_per_word(self) -> int:
        """``out`` values in a word of ``qweight``; tiles along ``out`` are multiples of it."""

    @property
    def zero_point_offset(self) -> int:
        """To be added to the packed zero points."""

    def qweight_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of ``qweight`` for a weight ``(out, in)``; only where :meth:`fits`."""

    def qzeros_shape(self, outputs: int, groups: int) -> tuple[int, int]:
        """Shape of ``qzeros``; only where :meth:`fits`."""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a weight ``(out, in)`` fills whole words."""

    def codes(self, qweight: Words, order: Int32Array | None = None) -> UInt8Array:
        """Codes as stored.

        Args:
            qweight: some columns of the tensor, C-contiguous.
            order: the input of every stored column, ``[in]``; None where they are in order.

        Returns:
            ``[rows, in * bits / 8]``, a row for every output in those columns.
        """

    def zero_points(self, qzeros: Words) -> UInt8Array:
        """Zero points ``[groups, out]`` as packed, without the offset."""


@dataclass(frozen=True)
class GptqPacking:
    """GPTQ; 4 or 8 bits."""

    bits: int
    zero_point_offset: int
    outputs_per_word: int = 1

    @property
    def _per_word(self) -> int:
        return WORD_BITS // self.bits

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether inputs and outputs both fill whole words."""
        return shape[0] % self._per_word == 0 and shape[1] % self._per_word == 0

    def qweight_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[in * bits / 32, out]``."""
        return shape[1] // self._per_word, shape[0]

    def qzeros_shape(self, outputs: int, groups: int) -> tuple[int, int]:
        """``[groups, out * bits / 32]``."""
        return groups, outputs // self._per_word

    def codes(self, qweight: Words, order: Int32Array | None = None) -> UInt8Array:
        """Transpose the words: the bytes of one, lowest first, are those of the packed form."""
        if order is None:
            codes: UInt8Array = np.ascontiguousarray(qweight.T).astype("<u4", copy=False).view(np.uint8)
            return codes
        rows = self._inputs(qweight)[order]
        return np.ascontiguousarray((rows[0::2] | rows[1::2] << 4 if self.bits == 4 else rows).T)

    def _inputs(self, qweight: Words) -> UInt8Array:
        """A code per byte, ``[in, out]``."""
        words, outputs = qweight.shape
        octets = qweight.astype("<u4", copy=False).view(np.uint8).reshape(words, outputs, 4)
        inputs = np.empty((words, self._per_word, outputs), np.uint8)
        for octet in range(4):
            if self.bits == 8:
                inputs[:, octet] = octets[:, :, octet]
            else:
                np.bitwise_and(octets[:, :, octet], 0x0F, out=inputs[:, 2 * octet])
                np.right_shift(octets[:, :, octet], 4, out=inputs[:, 2 * octet + 1])
        return inputs.reshape(-1, outputs)

    def zero_points(self, qzeros: Words) -> UInt8Array:
        """Unpack along ``out``."""
        shifts = np.arange(0, WORD_BITS, self.bits, dtype=np.uint32)
        mask = np.uint32((1 << self.bits) - 1)
        zero_points: UInt8Array = ((qzeros[:, :, None] >> shifts) & mask).astype(np.uint8)
        return zero_points.reshape(qzeros.shape[0], -1)


@dataclass(frozen=True)
class AwqPacking:
    """AWQ, gemm version; 4 bits."""

    outputs_per_word: int = 8
    zero_point_offset: int = 0

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the outputs fill whole words; inputs are paired into bytes, in the packed form."""
        return shape[0] % self.outputs_per_word == 0 and shape[1] % 2 == 0

    def qweight_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[in, out / 8]``."""
        return shape[1], shape[0] // self.outputs_per_word

    def qzeros_shape(self, outputs: int, groups: int) -> tuple[int, int]:
        """``[groups, out / 8]``."""
        return groups, outputs // self.outputs_per_word

    def codes(self, qweight: Words, order: Int32Array | None = None) -> UInt8Array:
        """Pair the nibbles of neighbouring inputs, then transpose.

        Byte p of a word holds nibbles 2 p and 2 p + 1, so two bytes, one above the other, give two stored
        ones. AWQ knows no other order of the inputs.
        """
        assert order is None  # only g_idx gives one
        inputs, words = qweight.shape
        octets = qweight.astype("<u4", copy=False).view(np.uint8)
        first, second = octets[0::2], octets[1::2]
        low = ((first & 0x0F) | (second << 4)).reshape(inputs // 2, words, 4)
        high = ((first >> 4) | (second & 0xF0)).reshape(inputs // 2, words, 4)
        codes = np.empty((words, 8, inputs // 2), np.uint8)
        for octet in range(4):
            codes[:, _AWQ_OUTPUTS[2 * octet]] = low[:, :, octet].T
            codes[:, _AWQ_OUTPUTS[2 * octet + 1]] = high[:, :, octet].T
        return codes.reshape(8 * words, inputs // 2)

    def zero_points(self, qzeros: Words) -> UInt8Array:
        """Unpack along ``out``, in AWQ's order."""
        groups, words = qzeros.shape
        zero_points = np.empty((groups, words, 8), np.uint8)
        for nibble, output in enumerate(_AWQ_OUTPUTS):
            zero_points[:, :, output] = (qzeros >> np.uint32(4 * nibble)) & np.uint32(0x0F)
        return zero_points.reshape(groups, 8 * words)


def packing_of(quantization: PublishedQuantization) -> Packing:
    """The packing a configuration asks for."""
    if quantization.method == "awq":
        return AwqPacking()
    return GptqPacking(quantization.bits, quantization.zero_point_offset)
