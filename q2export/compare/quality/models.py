"""Measuring what quantization costs: a quantized model, or an engine of it, against the unquantized one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.quality import text as quality_text
from q2export.contracts.quantization import QualityThresholds
from q2export.errors import ParityError
from q2export.package.manifest import installed_versions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from q2export.compare.quality.results import QualityReport, QuantizedForm, WeightQuality
    from q2export.exporter.export import Source
    from q2export.exporter.quantization.statistics import WeightStatistics

    Score = Callable[[Sequence[int]], npt.NDArray[np.float32]]

BUILD_TOKENS = 512
"""Tokens of the text that a build measures on."""

MAX_TOKENS = 4096
"""Tokens of the text that are used where somebody asks for a report."""

_LIBRARIES = ("torch", "onnxruntime", "numpy", "tokenizers")


@dataclass(frozen=True)
class QualityText:
    """A text as token ids, cut into windows."""

    name: str
    windows: list[list[int]]


def quality_windows(folder: Path, text: str | Path | None, at_most: int, longest: int) -> QualityText:
    """Tokenize a text, or the built-in one.

    Args:
        folder: whose tokenizer is used.
        text: the text, or a UTF-8 file of it; None takes the built-in text.
        at_most: tokens to use.
        longest: tokens a window may have: the capacity of an engine.

    Raises:
        ParityError: there is no tokenizer, or the text cannot be read or is too short.
    """
    from q2export.compare.quality.measure import WINDOW_TOKENS, windows_of
    from q2export.runtime.tokenizer import TOKENIZER_FILE, load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ParityError(
            f"{folder}: holds no {TOKENIZER_FILE}, and quality is measured on text; add the tokenizer"
        )
    if text is None:
        words, name = quality_text.TEXT, quality_text.NAME
    else:
        words, name = words_of(text), text.name if isinstance(text, Path) else "the given text"
    return QualityText(name, windows_of(tokenizer.encode(words), at_most, min(WINDOW_TOKENS, longest)))


def words_of(text: str | Path) -> str:
    """The text itself, or what the file holds.

    Raises:
        ParityError: the file cannot be read, or is not UTF-8.
    """
    if isinstance(text, str):
        return text
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParityError(f"{text}: cannot be read as UTF-8 text: {error}") from error


def measure_quality(
    original: Source,
    quantized: Source,
    text: QualityText,
    *,
    names: tuple[str, str],
    command: str,
    thresholds: QualityThresholds | None = None,
    weights: Iterable[WeightQuality] = (),
    score: Score | None = None,
) -> QualityReport:
    """Compare logits on a text, and every layer on the way.

    Args:
        original: the unquantized checkpoint.
        quantized: the same model in the packed form.
        text: what to compare on.
        names: of the original and of what is compared with it, for the report.
        command: that repeats the comparison.
        thresholds: what is allowed; None judges nothing.
        weights: errors of the single weights, where they are known.
        score: logits ``[tokens, vocab_size]`` of an engine, which then stand in for those that the quantized
            checkpoint gives under PyTorch.

    Raises:
        ParityError: the two are not the same model, or ``quantized`` is not quantized.
    """
    from q2export.compare.quality.measure import TextComparison
    from q2export.compare.quality.results import LayerQuality, QualityReport
    from q2export.exporter.quantization.quality import compare_layers
    from q2export.exporter.quantization.quantize import source_bytes
    from q2export.exporter.reference import CheckpointReference

    form = _form(original, quantized)
    comparison = TextComparison()

    def compare(
        tokens: Sequence[int], exact: npt.NDArray[np.float32], found: npt.NDArray[np.float32]
    ) -> None:
        comparison.add(tokens, exact, found if score is None else score(tokens))

    layers = compare_layers(
        CheckpointReference(original),
        CheckpointReference(quantized),
        original.config.num_hidden_layers,
        text.windows,
        compare,
    )
    return QualityReport(
        model=names[0],
        quantized=names[1],
        measured="pytorch" if score is None else "engine",
        form=form,
        thresholds=thresholds,
        text=comparison.result(text.name),
        layers=tuple(
            LayerQuality(layer.name, layer.output_error, layer.accumulated_error) for layer in layers
        ),
        weights=tuple(weights),
        reference_bytes=source_bytes(original),
        quantized_bytes=sum(ref.nbytes for ref in quantized.checkpoint.tensors.values()),
        command=command,
        environment=installed_versions(_LIBRARIES),
    )


def _form(original: Source, quantized: Source) -> QuantizedForm:
    """How the second is quantized.

    Raises:
        ParityError: it is not, or is another model than the first.
    """
    from q2export.compare.quality.results import QuantizedForm
    from q2export.exporter.checkpoint.packed import PackedQuantization

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
    scheme = packed.scheme
    return QuantizedForm(scheme.bits, scheme.block_size, scheme.symmetric, packed.method)


def weight_qualities(statistics: Iterable[WeightStatistics]) -> list[WeightQuality]:
    """What quantizing found out about each weight, in the form of the report."""
    from q2export.compare.quality.results import WeightQuality

    return [
        WeightQuality(each.name, each.shape, each.relative_error, each.stored_bytes) for each in statistics
    ]
