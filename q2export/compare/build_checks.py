"""The checks of a build, before its package is put in place: parity, quality, golden inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from q2export.compare.parity import check_engine
from q2export.compare.prompts import GOLDEN_FILES, write_golden
from q2export.compare.quality.check import check_quality
from q2export.package.manifest import EngineInfo, ParitySummary, QualitySummary
from q2export.package.writer import PackageWriter
from q2export.pipeline.job import Job
from q2export.pipeline.options import BuildOptions
from q2export.pipeline.stages import Assembled
from q2export.pipeline.stopwatch import Stopwatch


@dataclass(frozen=True)
class Outcome:
    """What the checks found; where one was not made, why."""

    parity: ParitySummary | None
    parity_skipped: str | None
    quality: QualitySummary | None = None
    quality_skipped: str | None = None


def check_build(
    job: Job,
    options: BuildOptions,
    writer: PackageWriter,
    made: Assembled,
    engine: EngineInfo,
    watch: Stopwatch,
) -> Outcome:
    """Compare the engine with PyTorch, and what quantizing cost with the limits of the profile.

    Args:
        job: what is built. options: how.
        writer: the package; reports and golden files are added.
        made: graph and weights. engine: what the package is to run.
        watch: of the stages.

    Raises:
        ParityError: a limit is broken.
    """
    if not options.parity:
        skipped = "not asked for"
        return Outcome(None, skipped, None, None if made.quantization is None else skipped)
    with watch.stage("parity"):
        parity, parity_skipped = check_engine(writer, job, made.source, engine)
    quality, quality_skipped = None, None
    if made.quantization is not None:
        with watch.stage("quality"):
            quality, quality_skipped = check_quality(
                writer,
                job,
                made,
                engine,
                text=options.quality_text,
                allow_loss=options.allow_quality_loss,
            )
    if job.gpu is None and made.engine.kv_dtype != "bfloat16":  # NumPy and Polygraphy have no such type
        add_golden(writer, made, watch)
    return Outcome(parity, parity_skipped, quality, quality_skipped)


def add_golden(writer: PackageWriter, made: Assembled, watch: Stopwatch) -> None:
    """Add inputs of one step of the graph, and what ONNX Runtime computes from them."""
    with watch.stage("golden"):
        write_golden(writer.folder, made.engine)
        for name in GOLDEN_FILES:
            writer.add_written(name)
