"""What the calls of the public API return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from q2export.package.manifest import GRAPH_FILE, Manifest

if TYPE_CHECKING:
    from q2export.exporter.quantization.published.repack import RepackResult
    from q2export.exporter.quantization.quantize import QuantizeResult

T = TypeVar("T", bound="QuantizeResult | RepackResult")


@dataclass(frozen=True)
class BuildResult:
    """What ``build`` or ``export`` made.

    Attributes:
        package: the package folder; one that was exported holds a graph and no engine.
        manifest: its manifest.
        warnings: what deserves attention, one sentence each.
        passes: (pass, places rewritten, reasons for places left alone), in order.
        seconds: per stage, in order.
        peak_rss_bytes: largest resident set of this process until the end.
    """

    package: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    passes: tuple[tuple[str, int, tuple[str, ...]], ...]
    seconds: Mapping[str, float]
    peak_rss_bytes: int

    @property
    def onnx(self) -> Path:
        """The ONNX file."""
        return self.package / GRAPH_FILE


@dataclass(frozen=True)
class CheckpointResult(Generic[T]):
    """What ``quantize`` or ``repack`` made.

    Attributes:
        folder: the checkpoint.
        result: sizes and time; after ``quantize`` also the error of each weight.
        warnings: what deserves attention, one sentence each.
        peak_rss_bytes: largest resident set of this process until the end.
    """

    folder: Path
    result: T
    warnings: tuple[str, ...]
    peak_rss_bytes: int
