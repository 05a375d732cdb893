"""Weights that every way of storing them represents exactly: int4 codes with one scale per row.

Variants then differ from the reference by the rounding of activations alone, whatever their block and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.ort_ops.graph import CONTRIB, Float32Array, GraphBuilder, WeightFile

Int8Array = npt.NDArray[np.int8]
UInt8Array = npt.NDArray[np.uint8]

_CODE_STD = 4.6  # of the integers from -8 to 7


@dataclass(frozen=True)
class GridWeight:
    """``code * scale``.

    Attributes:
        codes: ``[..., out, in]`` from -8 to 7.
        scales: ``[..., out]``.
    """

    codes: Int8Array
    scales: Float32Array

    @property
    def values(self) -> Float32Array:
        """The matrix itself, ``[..., out, in]``."""
        product: Float32Array = self.codes * self.scales[..., None]
        return product

    @classmethod
    def random(cls, rng: np.random.Generator, *shape: int) -> GridWeight:
        """Values of variance about 1 / in, so that a product keeps the scale of its input."""
        codes = rng.integers(-8, 8, shape, dtype=np.int8)
        scales = (rng.random(shape[:-1], dtype=np.float32) * 0.5 + 0.75) / (_CODE_STD * shape[-1] ** 0.5)
        return cls(codes, scales.astype(np.float32))

    @classmethod
    def concatenate(cls, weights: Sequence[GridWeight]) -> GridWeight:
        """One matrix of the rows of all."""
        return cls(
            np.concatenate([weight.codes for weight in weights], axis=-2),
            np.concatenate([weight.scales for weight in weights], axis=-1),
        )

    @classmethod
    def interleave(cls, first: GridWeight, second: GridWeight) -> GridWeight:
        """One matrix in which the rows of the two alternate."""
        *lead, rows, columns = first.codes.shape
        codes = np.stack([first.codes, second.codes], axis=-2).reshape(*lead, 2 * rows, columns)
        scales = np.stack([first.scales, second.scales], axis=-1).reshape(*lead, 2 * rows)
        return cls(codes, scales)


@dataclass(frozen=True)
class NBits:
    """A form of ``MatMulNBits``: width, block and accuracy level (0 is fp32 activations, 4 is int8)."""

    bits: int
    block: int
    accuracy_level: int
    zero_points: bool = False

    @property
    def name(self) -> str:
        """``int4 block 32``; what is not usual is added."""
        level = "" if self.accuracy_level == 4 else f" level {self.accuracy_level}"
        return f"int{self.bits} block {self.block}{level}{' zero points' if self.zero_points else ''}"

    def codes(self, weight: GridWeight) -> UInt8Array:
        """Codes ``[..., out, in * bits / 8]``, unsigned; of two nibbles the low one is first."""
        unsigned = (weight.codes + np.int8(8)).astype(np.uint8)
        if self.bits == 8:
            return unsigned + np.uint8(120)
        packed: UInt8Array = unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
        return packed

    def block_scales(self, weight: GridWeight) -> Float32Array:
        """Scales ``[..., out, blocks]``."""
        return np.repeat(weight.scales[..., None], weight.codes.shape[-1] // self.block, axis=-1)

    def write(self, file: WeightFile, name: str, weight: GridWeight) -> None:
        """Append codes, scales and zero points of a matrix ``[out, in]``, unless they are there."""
        if f"{self.name} {name}.codes" in file:
            return
        rows, columns = weight.codes.shape
        blocks = columns // self.block
        file.add(f"{self.name} {name}.codes", self.codes(weight).reshape(rows, blocks, -1))
        file.add(f"{self.name} {name}.scales", self.block_scales(weight))
        if self.zero_points:
            middle = 0x88 if self.bits == 4 else 0x80
            zero_bytes = -(-blocks * self.bits // 8)
            file.add(f"{self.name} {name}.zeros", np.full((rows, zero_bytes), middle, dtype=np.uint8))

    def product(
        self, graph: GraphBuilder, x: str, name: str, shape: tuple[int, int], bias: str | None = None
    ) -> str:
        """Append ``x @ weight.T`` (``+ bias``) of a weight ``[out, in]`` written under ``name``."""
        inputs = [x, graph.weight(f"{self.name} {name}.codes"), graph.weight(f"{self.name} {name}.scales")]
        if self.zero_points:
            inputs.append(graph.weight(f"{self.name} {name}.zeros"))
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        attributes: dict[str, Any] = {
            "N": shape[0],
            "K": shape[1],
            "bits": self.bits,
            "block_size": self.block,
            "accuracy_level": self.accuracy_level,
        }
        return graph.op("MatMulNBits", inputs, attributes, CONTRIB)
