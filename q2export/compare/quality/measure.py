"""Measuring what quantization costs: a quantized model, or an engine of it, against the unquantized one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q2export.compare.quality.logits import TextComparison
from q2export.compare.quality.results import QualityReport, WeightQuality
from q2export.compare.quality.text import QualityText
from q2export.contracts.quantization import PackedQuantization, QualityThresholds
from q2export.errors import ParityError
from q2export.package.manifest import installed_versions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from q2export.exporter.checkpoint.source import Source

    Score = Callable[[Sequence[int]], npt.NDArray[np.float32]]

_LIBRARIES = ("torch", "onnxruntime", "numpy", "tokenizers")


@dataclass(frozen=True)
class Labels:
    """How a report names what it compares.

    Attributes:
        model: the unquantized model. quantized: what is compared with it.
        command: repeats the comparison; empty where none does.
    """

    model: str
    quantized: str
    command: str = ""


def measure_quality(
    original: Source,
    quantized: Source,
    text: QualityText,
    labels: Labels,
    thresholds: QualityThresholds | None = None,
    score: Score | None = None,
) -> QualityReport:
    """Compare logits on a text, every layer on the way, and every quantized weight.

    Args:
        original: the unquantized checkpoint. quantized: the same model in the packed form.
        text: what to compare on.
        labels: for the report.
        thresholds: what is allowed; None judges nothing.
        score: logits ``[tokens, vocab_size]`` of an engine, which then stand in for those that the quantized
            checkpoint gives under PyTorch.

    Raises:
        ParityError: the two are not the same model, or ``quantized`` is not quantized.
    """
    from q2export.compare.quality.layers import compare_layers
    from q2export.exporter.quantization.quantize import source_bytes
    from q2export.exporter.reference import CheckpointReference

    quantization = _quantization(original, quantized)
    comparison = TextComparison()

    def compare(
        tokens: Sequence[int], exact: npt.NDArray[np.float32], found: npt.NDArray[np.float32]
    ) -> None:
        comparison.add(tokens, exact, found if score is None else score(tokens))

    errors = compare_layers(
        CheckpointReference(original), CheckpointReference(quantized), quantized.packed, text.windows, compare
    )
    return QualityReport(
        model=labels.model,
        quantized=labels.quantized,
        measured="pytorch" if score is None else "engine",
        quantization=quantization,
        thresholds=thresholds,
        text=comparison.result(text.name),
        layers=errors.layers,
        weights=tuple(
            WeightQuality(name, weight.shape, errors.weights[name], weight.nbytes)
            for name, weight in quantized.packed.items()
        ),
        reference_bytes=source_bytes(original),
        quantized_bytes=sum(ref.nbytes for ref in quantized.checkpoint.tensors.values()),
        command=labels.command,
        environment=installed_versions(_LIBRARIES),
    )


def _quantization(original: Source, quantized: Source) -> PackedQuantization:
    """How the second is quantized.

    Raises:
        ParityError: it is not, or is another model than the first.
    """
    packed = quantized.config.quantization
    if not isinstance(packed, PackedQuantization):
        raise ParityError(f"{quantized.folder}: is not a quantized checkpoint in the packed form")
    for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
        ours, theirs = getattr(original.config, name), getattr(quantized.config, name)
        if ours != theirs:
            raise ParityError(
                f"{quantized.folder}: not a quantized form of {original.folder}: {name} is {theirs}, "
                f"there {ours}"
            )
    return packed
