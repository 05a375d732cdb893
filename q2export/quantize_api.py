"""``q2export.quantize`` and ``quality_report``: quantized checkpoints, and what quantizing them cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.calibration import MAX_TOKENS, calibration_sequences
from q2export.contracts.progress import progress_bar
from q2export.contracts.quantization import Method, QualityThresholds, Quantization, WeightType
from q2export.errors import CalibrationError, ConfigError
from q2export.package.output import check_output
from q2export.pipeline.model_source import resolve_model
from q2export.pipeline.stopwatch import peak_rss_bytes

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.exporter.checkpoint.source import Source
    from q2export.exporter.quantization.quantize import QuantizeResult
    from q2export.exporter.quantization.quantizer import Quantizer


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """What :func:`quantize` made.

    Attributes:
        folder: the checkpoint.
        result: sizes, time, and the error of each weight.
        warnings: what deserves attention, one sentence each.
        peak_rss_bytes: largest resident set of this process until then.
    """

    folder: Path
    result: QuantizeResult
    warnings: tuple[str, ...]
    peak_rss_bytes: int


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    weights: WeightType = "int4",
    block_size: int = 32,
    symmetric: bool = True,
    embedding: bool = True,
    keep: Sequence[str] = (),
    method: Method | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int = MAX_TOKENS,
    revision: str | None = None,
    overwrite: bool = False,
) -> QuantizedCheckpoint:
    """Write a checkpoint folder with quantized weights, which every command takes as a model.

    Rounding to nearest needs neither PyTorch nor onnx, and a few megabytes of the model are in memory at a
    time. ``gptq`` needs PyTorch and holds one layer in float32 with the activations of the calibration text.

    Args:
        model: checkpoint folder or hub id, not quantized itself.
        output: folder to make; nothing is left there after an error.
        weights: ``int4`` or ``int8``.
        block_size: values that share a scale: 32, 64 or 128.
        symmetric: without zero points.
        embedding: quantize the embedding and the head, too.
        keep: shell patterns of Hugging Face names of weights to leave in high precision.
        method: ``round-to-nearest`` or ``gptq``; None is ``gptq`` exactly where there is calibration text.
        calibration: UTF-8 file of text like that which the model will see.
        calibration_tokens: use at most so many of it. A mixture of experts wants more than a dense model:
            an expert is calibrated only if it sees at least as many tokens as its matrices have columns.
        revision: of a hub id.
        overwrite: replace an existing quantized checkpoint.

    Raises:
        Q2ExportError: one of its family; the message says what to do.
    """
    from q2export.exporter.checkpoint.source import load_source
    from q2export.exporter.quantization.folder import quantize_checkpoint, written_files
    from q2export.exporter.quantization.quantize import check_not_quantized, source_bytes

    quantization = Quantization(
        weights=weights,
        block_size=block_size,
        symmetric=symmetric,
        method=_method(method, calibration),
        embedding=embedding,
        keep=tuple(keep),
    )
    check_output(Path(output).absolute(), overwrite, written_files)
    source = load_source(resolve_model(model, revision).folder)
    check_not_quantized(source)
    quantizer = None
    if calibration is not None:
        quantizer = _calibrated(source, quantization, Path(calibration), calibration_tokens)
    with progress_bar("quantizing weights", source_bytes(source)) as advance:
        result = quantize_checkpoint(
            source,
            Path(output),
            quantization,
            quantizer=quantizer,
            overwrite=overwrite,
            advance=advance,
        )
    folder = Path(output).absolute()
    return QuantizedCheckpoint(folder, result, source.config.warnings, peak_rss_bytes())


def _method(method: Method | None, calibration: str | Path | None) -> Method:
    if method == "gptq" and calibration is None:
        raise CalibrationError("method gptq needs text to calibrate on: give a file of it (--calibration)")
    if method == "round-to-nearest" and calibration is not None:
        raise CalibrationError("method round-to-nearest does not calibrate; leave out the text, or use gptq")
    return method or ("round-to-nearest" if calibration is None else "gptq")


def _calibrated(source: Source, quantization: Quantization, text: Path, at_most: int) -> Quantizer:
    from q2export.exporter.quantization.calibrated.quantizer import Calibrated

    longest = source.config.context_length
    return Calibrated(source, quantization, calibration_sequences(source.folder, text, at_most, longest))


def quality_report(
    model: str | Path,
    quantized: str | Path,
    *,
    text: str | Path | None = None,
    thresholds: QualityThresholds | None = None,
    revision: str | None = None,
) -> QualityReport:
    """Compare a quantized checkpoint with the model it was made from, under PyTorch, layer by layer.

    Args:
        model: checkpoint folder or hub id, not quantized.
        quantized: folder that :func:`quantize` made, or a published quantized checkpoint in the packed form.
        text: to measure on, or a UTF-8 file of it; None takes a short built-in text.
        thresholds: what is allowed; None judges nothing.
        revision: of a hub id.

    Raises:
        Q2ExportError: a folder is not what it should be, or the text is too short.
    """
    from q2export.compare.quality.measure import Labels, measure_quality
    from q2export.compare.quality.text import MAX_TOKENS as QUALITY_TOKENS
    from q2export.compare.quality.text import quality_windows
    from q2export.exporter.checkpoint.source import load_source

    found = resolve_model(model, revision)
    original, other = load_source(found.folder), load_source(Path(quantized))
    if original.config.quantization is not None:
        raise ConfigError(f"{found.folder}: is quantized itself; give the model it was made from")
    arguments = ["q2export", "quantize", "--model", found.id, "--output", str(quantized), "--report", "FILE"]
    return measure_quality(
        original,
        other,
        quality_windows(found.folder, text, QUALITY_TOKENS, original.config.context_length),
        Labels(found.id, Path(quantized).name, shlex.join(arguments)),
        thresholds,
    )
