"""What a method of quantization is to the rest: rows of a matrix in, codes, scales and zero points out."""

from __future__ import annotations

from typing import Protocol

from q2export.contracts.quantization import Method
from q2export.exporter.checkpoint.pack import Float32Array, QuantizedRows
from q2export.exporter.checkpoint.packed import PackedWeight


class Quantizer(Protocol):
    """A method of quantization.

    Attributes:
        in_order: one group of the layout is done before the next is begun, in model order; otherwise they may
            overlap.
        chunk_values: about how many values of a weight to ask for at a time.
    """

    in_order: bool
    chunk_values: int

    def quantize(self, weight: PackedWeight, first_row: int, rows: Float32Array) -> QuantizedRows:
        """Quantize some rows, float32 ``[rows, in]``, finite; called from several threads.

        The result for a row must not depend on which rows come along.
        """

    def method(self, weight: PackedWeight) -> Method:
        """How a weight was quantized; asked when all of its rows are done."""
