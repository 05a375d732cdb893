"""Two checkpoints side by side, layer by layer: what each quantized layer does to its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from q2export.exporter.reference import CheckpointReference

Float32Array = npt.NDArray[np.float32]
OnLogits = Callable[[Sequence[int], Float32Array, Float32Array], None]
"""Takes a sequence and its logits ``[tokens, vocab_size]``, unquantized and quantized."""


@dataclass(frozen=True)
class LayerErrors:
    """One decoder layer; definitions in ``q2export.compare.quality.results.LayerQuality``."""

    name: str
    output_error: float
    accumulated_error: float


@torch.no_grad()
def compare_layers(
    reference: CheckpointReference,
    quantized: CheckpointReference,
    num_layers: int,
    sequences: Sequence[Sequence[int]],
    on_logits: OnLogits,
) -> list[LayerErrors]:
    """Run both models over the same tokens, one layer of each in memory at a time.

    Args:
        reference: the unquantized model.
        quantized: the same one with quantized weights.
        num_layers: of both.
        sequences: token ids.
        on_logits: called once per sequence at the end; logits of one sequence at a time are in memory.
    """
    exact = [reference.embed(sequence) for sequence in sequences]
    drifted = [quantized.embed(sequence) for sequence in sequences]
    errors = []
    for index in range(num_layers):
        layer, quantized_layer = reference.layer(index), quantized.layer(index)
        own, added, accumulated, size = 0.0, 0.0, 0.0, 0.0
        for position, hidden in enumerate(exact):
            output = layer(hidden)
            own += _squares(quantized_layer(hidden) - output)
            added += _squares(output - hidden)
            drifted[position] = quantized_layer(drifted[position])
            accumulated += _squares(drifted[position] - output)
            size += _squares(output)
            exact[position] = output
        errors.append(LayerErrors(f"model.layers.{index}", _ratio(own, added), _ratio(accumulated, size)))
    exact, drifted = reference.final_norm(exact), quantized.final_norm(drifted)
    for sequence, one, other in zip(sequences, exact, drifted, strict=True):
        on_logits(sequence, reference.head([one])[0], quantized.head([other])[0])
    return errors


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())


def _ratio(error: float, size: float) -> float:
    """Root of a quotient of sums of squares; 0 where both are."""
    return (error / size) ** 0.5 if size > 0 else 0.0 if error == 0 else float("inf")
