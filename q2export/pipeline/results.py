"""What the calls of the public API return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from q2export.package.manifest import Manifest


@dataclass(frozen=True)
class BuildResult:
    """What :func:`build` made.

    Attributes:
        package: the package folder.
        manifest: its manifest.
        warnings: what deserves attention, one sentence each.
        passes: (pass, places rewritten, reasons for places left alone), in order.
        seconds: per stage, in order.
        peak_rss_bytes: largest resident set of this process until the build ended.
    """

    package: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    passes: tuple[tuple[str, int, tuple[str, ...]], ...]
    seconds: Mapping[str, float]
    peak_rss_bytes: int


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` made.

    Attributes:
        folder: the output folder, an engine package without an engine check.
        onnx: the ONNX file in it.
        manifest: its manifest.
        warnings, passes, seconds, peak_rss_bytes: as in :class:`BuildResult`.
    """

    folder: Path
    onnx: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    passes: tuple[tuple[str, int, tuple[str, ...]], ...]
    seconds: Mapping[str, float]
    peak_rss_bytes: int
