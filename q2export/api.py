"""The public API: ``build``, ``plan``, ``export``, ``load``, ``verify``. The command line does the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from q2export.compare.command import verify_command
from q2export.compare.parity import check_engine, check_same_model, verify_parity
from q2export.compare.prompts import GOLDEN_FILES, write_golden
from q2export.compare.quality.check import check_quality, verify_quality
from q2export.compare.quality.text import words_of
from q2export.contracts.profile import Profile
from q2export.contracts.profile_loading import load_profile
from q2export.contracts.quantization import Quantization
from q2export.errors import ExportError, PackageError, ParityError
from q2export.package.manifest import GRAPH_FILE, ParitySummary, QualitySummary
from q2export.package.output import check_output
from q2export.package.placement import PlacementMode
from q2export.package.reader import Check, read_package
from q2export.package.writer import PackageWriter, written_files
from q2export.pipeline import engine as engine_build
from q2export.pipeline import stages as pipeline
from q2export.pipeline.job import resolve_graph, resolve_job
from q2export.pipeline.model_source import resolve_model
from q2export.pipeline.results import BuildResult, ExportResult
from q2export.pipeline.stages import Assembled
from q2export.pipeline.stopwatch import Stopwatch, peak_rss_bytes

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.verify.results import ParityReport
    from q2export.exporter.weights.sink import Scan
    from q2export.runtime.engine import Engine


def plan(
    model: str | Path,
    *,
    profile: str | Path = "cpu",
    overrides: Mapping[str, object] | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Resolve everything ``build`` would do, and do nothing of it.

    Returns:
        plain data: the model, the resolved profile with the origin of each value, and the sizes of the
        weights.

    Raises:
        Q2ExportError: what ``build`` would raise before it writes.
    """
    return resolve_job(model, profile, overrides, revision).describe()


def build(
    model: str | Path,
    output: str | Path,
    *,
    profile: str | Path = "cpu",
    overrides: Mapping[str, object] | None = None,
    revision: str | None = None,
    parity: bool = True,
    value_scan: bool = True,
    weights: PlacementMode = "auto",
    timing_cache: Path | None = None,
    quality_text: str | Path | None = None,
    allow_quality_loss: bool = False,
    overwrite: bool = False,
) -> BuildResult:
    """Build an engine package: load, export, lower, package, check parity.

    Args:
        model: checkpoint folder or hub id.
        output: package folder to make; nothing is left there after an error.
        profile: name of a packaged profile, or path of a profile file.
        overrides: dotted profile keys that take precedence over the file.
        revision: of a hub id.
        parity: compare the finished engine with PyTorch on a few prompts before the package is put in place,
            and keep golden inputs and outputs. Without it the engine is never run while building.
        value_scan: read every weight and refuse NaN, infinities and values beyond the target's type.
        weights: how weights used in place get into the package: linked, copied, or linked where possible.
        timing_cache: file of kernels the full TensorRT has measured, read and updated; it speeds up the next
            build.
        quality_text: text, or a UTF-8 file of it, on which the loss by quantizing is measured; None is a
            short built-in text. As with all comparisons with PyTorch, nothing is measured without ``parity``.
        allow_quality_loss: keep an engine whose quality breaks the limits of the profile.
        overwrite: replace an existing package.

    Raises:
        Q2ExportError: one of its family; the message says what to do.
    """
    watch = Stopwatch()
    check_output(Path(output).absolute(), overwrite, written_files)
    with watch.stage("load"):
        job = resolve_job(model, profile, overrides, revision)
    if job.target == "portable":
        raise ExportError("target 'portable' has no engine; use 'q2export export --target portable'")
    job.announce()
    with PackageWriter.open(Path(output), overwrite, weights) as writer:
        scan: Scan = "all" if value_scan else "none"
        made = pipeline.assemble(job, writer, scan=scan, watch=watch)
        engine = made.engine
        if job.engine is not None:
            with watch.stage("engine"):
                engine = engine_build.build_engine(writer, job.engine, engine, job.profile, timing_cache)
        summary: ParitySummary | None = None
        skipped: str | None = "not asked for (--no-parity)"
        if parity:
            with watch.stage("parity"):
                summary, skipped = check_engine(writer, job, made.source, engine, prepack=made.prepacks)
        quality: QualitySummary | None = None
        quality_skipped = None if made.quantization is None else skipped
        if parity and made.quantization is not None:
            with watch.stage("quality"):
                quality, quality_skipped = check_quality(
                    writer, job, made, engine, text=quality_text, allow_loss=allow_quality_loss
                )
        if parity and job.engine is None:
            _write_golden(writer, made, watch)
        described = pipeline.describe(
            job,
            writer,
            made,
            engine,
            parity=summary,
            parity_skipped=skipped,
            quality=quality,
            quality_skipped=quality_skipped,
            profile=job.profile,
        )
        writer.write_manifest(described)
    warnings, passes = made.source.config.warnings, made.graph.passes
    return BuildResult(writer.output, described, warnings, passes, watch.seconds, peak_rss_bytes())


def _write_golden(writer: PackageWriter, made: Assembled, watch: Stopwatch) -> None:
    """Add golden inputs and outputs of one step of the graph."""
    with watch.stage("golden"):
        write_golden(writer.folder, made.engine, prepack=made.prepacks)
        for name in GOLDEN_FILES:
            writer.add_written(name)


def export(
    model: str | Path,
    output: str | Path,
    *,
    target: Literal["portable", "onnxruntime", "tensorrt"] = "portable",
    dtype: str | None = None,
    revision: str | None = None,
    weights: PlacementMode = "auto",
    golden: bool = False,
    overwrite: bool = False,
    max_capacity: int | None = None,
    quantization: Quantization | None = None,
) -> ExportResult:
    """Write the ONNX graph of a checkpoint; no weight is read that need not be converted.

    Values that are converted are checked as in :func:`build`; those used in place are not.

    Args:
        model: checkpoint folder or hub id.
        output: folder to make.
        target: ``portable`` is the canonical graph; the others are lowered.
        dtype: type of the graph; None is the checkpoint's own where the target takes it.
        golden: also write inputs for one step and what ONNX Runtime computes from them, for polygraphy.
        revision, weights, overwrite: as in :func:`build`.
        max_capacity: tokens the rotary tables of target ``onnxruntime`` cover; None is what the model was
            made for.
        quantization: of the weights, of a checkpoint that is not quantized; ``activations`` holds for one
            that is, too.

    Raises:
        Q2ExportError: one of its family; nothing is left behind.
    """
    from q2export.exporter.checkpoint.config import load_config

    watch = Stopwatch()
    check_output(Path(output).absolute(), overwrite, written_files)
    with watch.stage("load"):
        found = resolve_model(model, revision)
        capacity = max_capacity or load_config(found.folder).context_length
        profile = _export_profile(capacity, quantization or Quantization())
        job = resolve_graph(found, target, profile, dtype)
    job.announce()
    with PackageWriter.open(Path(output), overwrite, weights) as writer:
        made = pipeline.assemble(job, writer, scan="converted", watch=watch)
        if golden:
            _write_golden(writer, made, watch)
        skipped = "exported, not built"
        described = pipeline.describe(
            job, writer, made, made.engine, parity=None, parity_skipped=skipped, profile=None
        )
        writer.write_manifest(described)
    onnx = writer.output / GRAPH_FILE
    warnings, passes = made.source.config.warnings, made.graph.passes
    return ExportResult(writer.output, onnx, described, warnings, passes, watch.seconds, peak_rss_bytes())


def _export_profile(capacity: int, quantization: Quantization) -> Profile:
    """What an exported graph is described with: ranges as wide as the model."""
    base = load_profile("cpu", {"capacity.max": capacity, "capacity.opt": min(capacity, 2048)})
    return dataclasses.replace(base, quantization=quantization)


def load(
    package: str | Path, *, threads: int | None = None, prepack: bool | None = None, check: Check = "fast"
) -> Engine:
    """Load a package for generation. Needs neither PyTorch nor onnx.

    Args:
        package: folder made by :func:`build`.
        threads: CPU threads; None is what the profile says (0: one per core).
        prepack: keep a copy of the matrices in the layout of the kernels: decodes faster, loads slower, takes
            the memory once more. None is what the profile says (``auto``: only if the weights had to be
            converted).
        check: how much of the package is checked first, see :func:`q2export.package.reader.read_package`.

    Raises:
        PackageError: not a package, damaged, or made for something else.
    """
    from q2export import runtime

    return runtime.load(package, threads=threads, prepack=prepack, check=check)


def verify(
    package: str | Path,
    model: str | Path,
    *,
    revision: str | None = None,
    prompts: Sequence[str] | None = None,
    text: str | Path | None = None,
    greedy_tokens: int = 64,
    threads: int | None = None,
    report: str | Path | None = None,
) -> ParityReport | QualityReport:
    """Compare a package with the PyTorch reference of its checkpoint.

    A package whose weights are quantized is compared with the quantized checkpoint like any other. Compared
    with the unquantized model it gives a report of the quality that quantizing has cost, on running text.

    Args:
        package: folder made by :func:`build`.
        model: the checkpoint it was built from; folder or hub id.
        revision: of a hub id.
        prompts: texts to continue and compare on; None takes a built-in set.
        text: running text for perplexity, or a UTF-8 file of it.
        greedy_tokens: tokens to generate after each prompt.
        threads: CPU threads; None is what the profile says.
        report: HTML page to write.

    Returns:
        the report; ``passed`` is the verdict, a wrong engine is no exception.

    Raises:
        Q2ExportError: the two cannot be compared.
    """
    from q2export.exporter.checkpoint.source import load_source

    opened = read_package(package)
    engine = opened.manifest.engine
    if opened.manifest.target != "onnxruntime" and engine.tensorrt is None:
        raise PackageError(
            f"{opened.folder}: holds a graph for target {opened.manifest.target!r}, no engine; compare it "
            "with --runner polygraphy, or build an engine"
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
