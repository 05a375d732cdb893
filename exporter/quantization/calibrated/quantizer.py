"""The quantizer that calibrates: GPTQ with what each weight reads in a text."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from q2export.contracts.quantization import Method, PackedQuantization, Quantization
from q2export.errors import CalibrationError
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.pack import Float32Array, QuantizedRows
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.parameters import EMBEDDING
from q2export.exporter.checkpoint.selection import select_weights
from q2export.exporter.checkpoint.source import Source
from q2export.exporter.quantization.calibrated.gptq import gptq
from q2export.exporter.quantization.calibrated.hessian import DAMPING, inverse_factor, second_moments
from q2export.exporter.quantization.calibrated.model import ModelInputs
from q2export.exporter.quantization.padding import pad_intermediate
from q2export.exporter.quantization.round_to_nearest import round_to_nearest

_TIED_DAMPING = 0.3
"""For a matrix that is the head and, as the embedding, also looked up, where each column counts the same."""


class Calibrated:
    """A :class:`~q2export.exporter.quantization.quantizer.Quantizer` that calibrates on token ids.

    Each weight is quantized with what it reads from the quantized weights before it. A weight that reads
    fewer tokens than it has columns, such as an expert that the text seldom reaches, is rounded to nearest:
    so few say little about it. So is an embedding, which reads nothing, unless it is the head as well.

    One layer is in memory, in float32, with the activations of all sequences and the second moments of one
    input. Matmuls round as their library does: the same bytes come out on the same machine with the
    same number of cores.
    """

    in_order = True
    chunk_values = 1 << 24

    def __init__(
        self, source: Source, quantization: Quantization, sequences: Sequence[Sequence[int]]
    ) -> None:
        """Prepare to quantize.

        Args:
            source: the checkpoint.
            quantization: as for :func:`~q2export.exporter.quantization.quantize.quantize_weights`.
            sequences: token ids, each at least one.

        Raises:
            CalibrationError: there are too few tokens for any weight, or one the model does not have.
        """
        packed = PackedQuantization.of(quantization)
        config = pad_intermediate(source.config, packed).config
        _check_tokens(sequences, config)
        weights = select_weights(config, packed)
        self._inputs = ModelInputs(config, source.checkpoint.tensors, weights, sequences)
        self._factor: tuple[str, Float32Array | None] = ("", None)
        self._lock = threading.Lock()
        self._rounded: set[str] = set()

    def quantize(self, weight: PackedWeight, first_row: int, rows: Float32Array) -> QuantizedRows:
        """Quantize some rows and let the weights after it read what they have become."""
        with self._lock:  # matmuls use all cores already
            factor = self._factor_of(weight)
            if factor is None:
                self._rounded.add(weight.name)
                quantized = round_to_nearest(rows, weight.scheme)
            else:
                quantized = gptq(rows, factor, weight.scheme)
            self._inputs.fill(weight.name, first_row, quantized.dequantized(weight.scheme))
        return quantized

    def method(self, weight: PackedWeight) -> Method:
        """How the rows of a weight were quantized."""
        return "round-to-nearest" if weight.name in self._rounded else "gptq"

    def _factor_of(self, weight: PackedWeight) -> Float32Array | None:
        """For :func:`gptq`; None where there is too little to go by. That of the last input is kept."""
        found = self._inputs.of(weight.name)
        if found is None:
            return None
        key, inputs = found
        if key != self._factor[0]:
            self._factor = "", None
            size = weight.shape[1]
            moments, tokens = second_moments(inputs, size)
            damping = _TIED_DAMPING if weight.name == EMBEDDING else DAMPING
            self._factor = key, inverse_factor(moments, damping) if tokens >= size else None
        return self._factor[1]


def _check_tokens(sequences: Sequence[Sequence[int]], config: ModelConfig) -> None:
    count = sum(map(len, sequences))
    if count < config.hidden_size:
        raise CalibrationError(
            f"the calibration text has {count} tokens; a model with hidden_size {config.hidden_size} needs "
            "at least as many, and several times more for a good result"
        )
    largest = max(map(max, sequences))
    if largest >= config.vocab_size:
        raise CalibrationError(
            f"the model has {config.vocab_size} tokens, the tokenizer makes token {largest} of the "
            "calibration text; is tokenizer.json that of this model?"
        )
