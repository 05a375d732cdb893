"""``verify``: a package against the PyTorch reference, or against the unquantized model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.command import verify_command
from q2export.compare.parity import check_same_model, verify_parity
from q2export.compare.quality.check import verify_quality
from q2export.compare.quality.text import words_of
from q2export.compare.report.page import check_writable
from q2export.errors import PackageError, ParityError
from q2export.package.reader import read_package
from q2export.pipeline.model_source import resolve_model

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.verify.results import ParityReport


def verify_package(
    package: str | Path,
    model: str | Path,
    *,
    revision: str | None,
    prompts: Sequence[str] | None,
    text: str | Path | None,
    greedy_tokens: int,
    threads: int | None,
    report: str | Path | None,
) -> ParityReport | QualityReport:
    """Compare a package with the PyTorch reference of its checkpoint; see ``q2export.verify``."""
    from q2export.exporter.checkpoint.source import load_source

    if report is not None:
        check_writable(Path(report))
    opened = read_package(package)
    engine = opened.manifest.engine
    if opened.manifest.target != "onnxruntime" and engine.tensorrt is None:
        raise PackageError(
            f"{opened.folder}: holds a graph for target {opened.manifest.target!r}, no engine; compare it "
            "with Polygraphy (q2export verify --runner polygraphy), or build an engine"
        )
    found = resolve_model(model, revision)
    source = load_source(found.folder)
    check_same_model(opened.manifest, source)
    command = verify_command(
        package,
        model,
        revision=revision,
        prompts=prompts,
        text=text,
        greedy_tokens=greedy_tokens,
        threads=threads,
    )
    if opened.manifest.quantization is not None and source.quantization is None:
        if prompts is not None:
            raise ParityError("quality is measured on running text; leave the prompts out and give a text")
        quality = verify_quality(opened, found, source, text=text, threads=threads, command=command)
        if report is not None:
            from q2export.compare.quality.page import quality_page

            quality_page(quality).write(Path(report))
        return quality
    result = verify_parity(
        opened,
        found,
        source,
        prompts=prompts,
        text=None if text is None else words_of(text),
        greedy_tokens=greedy_tokens,
        threads=threads,
        command=command,
    )
    if report is not None:
        from q2export.compare.verify.page import parity_page

        parity_page(result).write(Path(report))
    return result
