"""``verify``: a package against the PyTorch reference, or against the unquantized model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.options import VerifyOptions
from q2export.compare.parity import check_same_model, run_info, verify_parity
from q2export.compare.quality.check import verify_quality
from q2export.compare.quality.measure import Labels
from q2export.compare.report.page import check_writable
from q2export.errors import PackageError
from q2export.package.reader import read_package
from q2export.pipeline.model_source import resolve_model

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.verify.results import ParityReport


def verify_package(
    package: str | Path, model: str | Path, options: VerifyOptions, report: Path | None
) -> ParityReport | QualityReport:
    """Compare a package with the PyTorch reference of its checkpoint; see ``q2export.verify``."""
    from q2export.compare.quality.page import quality_page
    from q2export.compare.verify.page import parity_page
    from q2export.exporter.checkpoint.source import load_source

    if report is not None:
        check_writable(report)
    opened = read_package(package)
    manifest = opened.manifest
    if manifest.target not in ("onnxruntime", "onnxruntime-cuda") and manifest.engine.tensorrt is None:
        raise PackageError(
            f"{opened.folder}: holds a graph for target {manifest.target!r}, no engine; compare it "
            "with Polygraphy (q2export verify --runner polygraphy), or build an engine"
        )
    found = resolve_model(model, options.revision)
    source = load_source(found.folder)
    check_same_model(manifest, source)
    name, command = opened.folder.name, options.command(package, model)
    result: ParityReport | QualityReport
    if manifest.quantization is not None and source.quantization is None:
        result = verify_quality(opened, source, Labels(found.id, name, command), options)
        page = quality_page(result)
    else:
        result = verify_parity(opened, source, run_info(name, found.id, command), options)
        page = parity_page(result)
    if report is not None:
        page.write(report)
    return result
