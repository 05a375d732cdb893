"""Quality of a quantized checkpoint, under PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.quality.measure import Labels, measure_quality
from q2export.compare.quality.text import MAX_TOKENS, quality_windows
from q2export.contracts.quantization import QualityThresholds
from q2export.errors import ConfigError
from q2export.pipeline.model_source import resolve_model

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport


def compare_checkpoints(
    model: str | Path,
    quantized: Path,
    *,
    text: str | Path | None,
    thresholds: QualityThresholds | None,
    revision: str | None,
) -> QualityReport:
    """Compare a quantized checkpoint with the model it was made from; see ``q2export.quality_report``."""
    from q2export.exporter.checkpoint.source import load_source

    found = resolve_model(model, revision)
    original, other = load_source(found.folder), load_source(quantized)
    if original.config.quantization is not None:
        raise ConfigError(f"{found.folder}: is quantized itself; give the model it was made from")
    return measure_quality(
        original,
        other,
        quality_windows(found.folder, text, MAX_TOKENS, original.config.context_length),
        Labels(found.id, quantized.name),
        thresholds,
    )
