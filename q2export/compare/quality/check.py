"""Quality of an engine with quantized weights: after ``build``, and by ``verify`` against the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.engine_under_test import EngineUnderTest
from q2export.compare.options import VerifyOptions
from q2export.compare.quality.measure import Labels, measure_quality
from q2export.compare.quality.text import BUILD_TOKENS, MAX_TOKENS, quality_windows
from q2export.errors import PackageError, ParityError
from q2export.package.manifest import SHARD_FOLDER, EngineInfo, QualitySummary
from q2export.package.reader import Package
from q2export.package.writer import PackageWriter
from q2export.pipeline import engine as engine_build
from q2export.pipeline.job import Job
from q2export.pipeline.stages import Assembled

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.exporter.checkpoint.source import Source

QUALITY_FILE = "quality.json"


def check_quality(
    writer: PackageWriter,
    job: Job,
    made: Assembled,
    engine: EngineInfo,
    *,
    text: str | Path | None,
    allow_loss: bool,
) -> tuple[QualitySummary | None, str | None]:
    """Compare an engine whose weights were just quantized with the unquantized model.

    Args:
        writer: the package.
        job: what is being built. made: graph and weights. engine: describes the engine.
        text: to measure on; None is the built-in text.
        allow_loss: keep a package that breaks the limits of the profile.

    Returns:
        the outcome, or why there is none; neither, where no weight is quantized.

    Raises:
        ParityError: a limit is broken, and ``allow_loss`` is false.
    """
    from q2export.runtime.tokenizer import TOKENIZER_FILE

    if made.quantization is None:
        return None, None
    if (original := job.weights.original) is None:
        return None, "the checkpoint is quantized already, so there is nothing to compare with"
    if not (writer.folder / TOKENIZER_FILE).exists():
        return None, f"the checkpoint holds no {TOKENIZER_FILE}, and quality is measured on text"
    probe = None
    if job.gpu is None or engine_build.why_not_run(job.profile) is None:
        probe = EngineUnderTest.of_build(writer.folder, job, engine).probe()
    report = measure_quality(
        original,
        made.source,
        quality_windows(writer.folder, text, BUILD_TOKENS, engine.max_capacity),
        Labels(job.model.id, f"{job.profile.name} engine"),
        job.profile.quality,
        None if probe is None else probe.score,
    )
    if not (report.passed or allow_loss):
        from q2export.compare.quality.summary import quality_lines

        raise ParityError(
            "quantization costs more than the profile allows; nothing was kept. Keep more weights in high "
            "precision (quantization.keep), take int8, calibrate (q2export quantize), or allow "
            "the loss\n" + "\n".join(quality_lines(report))
        )
    writer.add_text(QUALITY_FILE, report.to_json() + "\n")
    return summary_of(report), None


def summary_of(report: QualityReport) -> QualitySummary:
    """The figures that go into the manifest."""
    text = report.text
    return QualitySummary(
        measured=report.measured,
        passed=report.passed,
        text=text.name,
        tokens=text.tokens,
        reference_perplexity=text.reference_perplexity,
        quantized_perplexity=text.quantized_perplexity,
        mean_kl=text.mean_kl,
        top1_agreement=text.top1_agreement,
    )


def verify_quality(
    package: Package, original: Source, labels: Labels, options: VerifyOptions
) -> QualityReport:
    """Compare a package of quantized weights with the unquantized model.

    Args:
        package: opened. original: the checkpoint of the unquantized model.
        labels: for the report.
        options: the text to measure on, and the threads.

    Raises:
        PackageError: the package holds no quantized checkpoint of its own.
        ParityError: prompts are given, which say nothing about quality.
    """
    from q2export.exporter.checkpoint.source import load_source

    if options.prompts is not None:
        raise ParityError("quality is measured on running text; leave the prompts out and give a text")
    folder = package.folder / SHARD_FOLDER
    if not (folder / "config.json").is_file():
        raise PackageError(
            f"{package.folder}: was built from a checkpoint that was quantized already; compare that one "
            "with the original, by q2export.quality_report(model, checkpoint), and this package with it, by "
            "q2export verify"
        )
    manifest = package.manifest
    return measure_quality(
        original,
        load_source(folder),
        quality_windows(package.folder, options.text, MAX_TOKENS, manifest.engine.max_capacity),
        labels,
        manifest.built_for.quality,
        EngineUnderTest.of_package(package, options.threads).probe().score,
    )
