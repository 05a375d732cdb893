"""Checkpoints made of checkpoints: quantized, or repacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.progress import progress_bar
from q2export.contracts.quantization import CALIBRATION_TOKENS, Method, Quantization
from q2export.errors import OptionError
from q2export.package.output import check_output
from q2export.pipeline.calibration import calibration_sequences
from q2export.pipeline.model_source import resolve_model
from q2export.pipeline.results import CheckpointResult
from q2export.pipeline.stopwatch import peak_rss_bytes

if TYPE_CHECKING:
    from q2export.exporter.quantization.published.repack import RepackResult
    from q2export.exporter.quantization.quantize import QuantizeResult


@dataclass(frozen=True)
class Calibration:
    """Whether and on what quantization calibrates; the names are those of ``q2export.quantize``.

    Raises:
        OptionError: two of them contradict each other.
    """

    method: Method | None
    calibration: Path | None
    calibration_tokens: int | None

    def __post_init__(self) -> None:
        if self.calibration is None:
            if self.method == "gptq":
                raise OptionError("method", "gptq needs text to calibrate on, and none is given")
            if self.calibration_tokens is not None:
                raise OptionError(
                    "calibration_tokens", "has no effect without text to calibrate on; leave it out"
                )
        elif self.method == "round-to-nearest":
            raise OptionError("method", "round-to-nearest does not calibrate; leave it out, or the text")

    @property
    def chosen(self) -> Method:
        """The method; if none was named, ``gptq`` exactly where there is text."""
        return self.method or ("round-to-nearest" if self.calibration is None else "gptq")


def quantize(
    model: str | Path,
    output: Path,
    quantization: Quantization,
    calibration: Calibration,
    *,
    revision: str | None,
    overwrite: bool,
) -> CheckpointResult[QuantizeResult]:
    """Write a checkpoint with quantized weights; see ``q2export.quantize``."""
    from q2export.exporter.checkpoint.source import load_source
    from q2export.exporter.quantization.folder import quantize_checkpoint, written_files
    from q2export.exporter.quantization.quantize import check_not_quantized, source_bytes

    folder = output.absolute()
    check_output(folder, overwrite, written_files)
    source = load_source(resolve_model(model, revision).folder)
    check_not_quantized(source)
    quantizer = None
    if calibration.calibration is not None:
        from q2export.exporter.quantization.calibrated.quantizer import Calibrated

        tokens = calibration.calibration_tokens or CALIBRATION_TOKENS
        longest = source.config.context_length
        texts = calibration_sequences(source.folder, calibration.calibration, tokens, longest)
        quantizer = Calibrated(source, quantization, texts)
    with progress_bar("quantizing weights", source_bytes(source)) as advance:
        result = quantize_checkpoint(
            source, folder, quantization, quantizer=quantizer, overwrite=overwrite, advance=advance
        )
    return CheckpointResult(folder, result, source.config.warnings, peak_rss_bytes())


def repack(
    model: str | Path, output: Path, *, revision: str | None, overwrite: bool
) -> CheckpointResult[RepackResult]:
    """Write a GPTQ or AWQ checkpoint in the packed form; see ``q2export.repack``."""
    from q2export.exporter.quantization.published.repack import repack_checkpoint
    from q2export.exporter.quantization.published.source import load_published

    folder = output.absolute()
    source = load_published(resolve_model(model, revision).folder)
    with progress_bar("repacking weights", source.nbytes) as advance:
        result = repack_checkpoint(source, folder, overwrite=overwrite, advance=advance)
    return CheckpointResult(folder, result, source.config.warnings, peak_rss_bytes())
