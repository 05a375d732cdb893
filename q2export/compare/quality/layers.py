"""Two checkpoints side by side: the error of each quantized weight and of each layer's output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from q2export.compare.quality.results import LayerQuality
from q2export.exporter.reference import CheckpointReference
from q2export.runtime.backends.base import Float32Array

OnLogits = Callable[[Sequence[int], Float32Array, Float32Array], None]
"""Takes a sequence and its logits ``[tokens, vocab_size]``, unquantized and quantized."""

_VALUES = 1 << 22  # widened to float64 at a time


@dataclass(frozen=True)
class ModelErrors:
    """What the comparison found: each decoder layer, and the relative error of each weight asked for."""

    layers: tuple[LayerQuality, ...]
    weights: dict[str, float]


@torch.no_grad()
def compare_layers(
    reference: CheckpointReference,
    quantized: CheckpointReference,
    weights: Collection[str],
    sequences: Sequence[Sequence[int]],
    on_logits: OnLogits,
) -> ModelErrors:
    """Run both models over the same tokens, one layer of each in memory at a time.

    Args:
        reference: the unquantized model.
        quantized: the same one with quantized weights.
        weights: Hugging Face names of those whose errors are wanted; they are compared as they are read.
        sequences: token ids.
        on_logits: called once per sequence at the end; logits of one sequence at a time are in memory.
    """
    exact = [reference.embed(sequence) for sequence in sequences]
    drifted = [quantized.embed(sequence) for sequence in sequences]
    layers: list[LayerQuality] = []
    errors: dict[str, float] = {}
    for index in range(reference.config.num_hidden_layers):
        path = f"model.layers.{index}"
        layer, quantized_layer = reference.layer(index), quantized.layer(index)
        errors |= _weight_errors(path, layer.module, quantized_layer.module, weights)
        own, added, accumulated, size = 0.0, 0.0, 0.0, 0.0
        for position, hidden in enumerate(exact):
            output = layer(hidden)
            own += _squares(quantized_layer(hidden) - output)
            added += _squares(output - hidden)
            drifted[position] = quantized_layer(drifted[position])
            accumulated += _squares(drifted[position] - output)
            size += _squares(output)
            exact[position] = output
        layers.append(LayerQuality(path, _ratio(own, added), _ratio(accumulated, size)))
    errors |= _vocabulary_errors(reference, quantized, weights)
    exact, drifted = reference.final_norm(exact), quantized.final_norm(drifted)
    for sequence, one, other in zip(sequences, exact, drifted, strict=True):
        on_logits(sequence, reference.head([one])[0], quantized.head([other])[0])
    return ModelErrors(tuple(layers), {name: errors[name] for name in weights})


def _weight_errors(
    path: str, exact: nn.Module, quantized: nn.Module, wanted: Collection[str]
) -> dict[str, float]:
    """Relative errors of a layer's weights."""
    others = dict(quantized.named_parameters())
    found = {}
    for name, weight in exact.named_parameters():
        if (full := f"{path}.{name}") in wanted:
            # Where an intermediate size was padded, the quantized weight has rows or columns of zeros more.
            rows, columns = weight.shape
            error = _squares(others[name][:rows, :columns] - weight)
            found[full] = _ratio(error, _squares(weight))
    return found


def _vocabulary_errors(
    reference: CheckpointReference, quantized: CheckpointReference, wanted: Collection[str]
) -> dict[str, float]:
    """Relative errors of embedding and head, read in slices."""
    found = {}
    for name in sorted({"model.embed_tokens.weight", "lm_head.weight"}.intersection(wanted)):
        error = size = 0.0
        for first, rows in reference.values.slices(name):
            error += _squares(torch.from_numpy(quantized.values.rows(name, first, len(rows)) - rows))
            size += _squares(torch.from_numpy(rows))
        found[name] = _ratio(error, size)
    return found


def _squares(values: Tensor) -> float:
    """Sum of squares in float64, some values at a time."""
    flat = values.detach().reshape(-1).numpy()
    total = 0.0
    for start in range(0, flat.size, _VALUES):
        wide = flat[start : start + _VALUES].astype(np.float64)
        total += float(wide @ wide)
    return total


def _ratio(error: float, size: float) -> float:
    """Root of a quotient of sums of squares; 0 where both are."""
    return (error / size) ** 0.5 if size > 0 else 0.0 if error == 0 else float("inf")
