"""``q2export.repack``: a published quantized checkpoint in the packed form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.progress import progress_bar
from q2export.pipeline.model_source import resolve_model
from q2export.pipeline.stopwatch import peak_rss_bytes

if TYPE_CHECKING:
    from q2export.exporter.quantization.published.repack import RepackResult


@dataclass(frozen=True)
class RepackedCheckpoint:
    """What :func:`repack` made.

    Attributes:
        folder: the checkpoint.
        result: what it holds, sizes and time.
        warnings: what deserves attention, one sentence each.
        peak_rss_bytes: largest resident set of this process until then.
    """

    folder: Path
    result: RepackResult
    warnings: tuple[str, ...]
    peak_rss_bytes: int


def repack(
    model: str | Path, output: str | Path, *, revision: str | None = None, overwrite: bool = False
) -> RepackedCheckpoint:
    """Write a GPTQ or AWQ checkpoint in the packed form, which every command takes as a model.

    The quantized values stay what they are, bit for bit. Neither PyTorch nor onnx is needed.

    Args:
        model: checkpoint folder or hub id.
        output: folder to make; nothing is left there after an error.
        revision: of a hub id.
        overwrite: replace an existing checkpoint in the packed form.

    Raises:
        Q2ExportError: one of its family; the message says what to do.
    """
    from q2export.exporter.quantization.published.repack import repack_checkpoint
    from q2export.exporter.quantization.published.source import load_published

    source = load_published(resolve_model(model, revision).folder)
    with progress_bar("repacking weights", source.nbytes) as advance:
        result = repack_checkpoint(source, Path(output), overwrite=overwrite, advance=advance)
    return RepackedCheckpoint(Path(output).absolute(), result, source.config.warnings, peak_rss_bytes())
