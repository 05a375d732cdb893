"""The public API. The command line does the same.

Errors are of the family of :class:`q2export.errors.Q2ExportError`; their messages say what to do. Heavy
libraries are imported when a function needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from q2export.compare import build_checks
from q2export.compare.options import GREEDY_TOKENS, VerifyOptions
from q2export.contracts.quantization import Method, QualityThresholds, Quantization, WeightType
from q2export.package.output import check_output
from q2export.package.placement import PlacementMode
from q2export.package.writer import PackageWriter, written_files
from q2export.pipeline import checkpoints, stages
from q2export.pipeline.engine import build_engine
from q2export.pipeline.job import resolve_export, resolve_job
from q2export.pipeline.options import BuildOptions, check_placement
from q2export.pipeline.results import BuildResult, CheckpointResult
from q2export.pipeline.stopwatch import Stopwatch, peak_rss_bytes
from q2export.runtime import load

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.verify.results import ParityReport
    from q2export.exporter.quantization.published.repack import RepackResult
    from q2export.exporter.quantization.quantize import QuantizeResult

__all__ = ["build", "export", "load", "plan", "quality_report", "quantize", "repack", "verify"]


def plan(
    model: str | Path,
    *,
    profile: str | Path = "cpu",
    overrides: Mapping[str, object] | None = None,
    revision: str | None = None,
    parity: bool = True,
    timing_cache: Path | None = None,
    quality_text: str | Path | None = None,
    allow_quality_loss: bool = False,
) -> dict[str, Any]:
    """Resolve everything :func:`build` would do, and do nothing of it.

    Args:
        model, profile, overrides, revision: as in :func:`build`.
        parity, timing_cache, quality_text, allow_quality_loss: likewise; what has no effect is refused.

    Returns:
        plain data: the model, the resolved profile with the origin of each value, and the sizes of the
        weights.

    Raises:
        Q2ExportError: what ``build`` would raise before it writes.
    """
    options = BuildOptions(
        profile=profile,
        overrides=overrides or {},
        revision=revision,
        parity=parity,
        timing_cache=timing_cache,
        quality_text=quality_text,
        allow_quality_loss=allow_quality_loss,
    )
    return resolve_job(model, options).describe()


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
    """Build an engine package: load, export, lower, package, check parity, and that it opens.

    Args:
        model: checkpoint folder or hub id.
        output: package folder to make; nothing is left there after an error.
        profile: name of a packaged profile, or path of a profile file.
        overrides: dotted profile keys that take precedence over the file.
        revision: of a hub id.
        parity: compare the finished engine with PyTorch on a few prompts before the package is put in place,
            and keep golden inputs and outputs. Without it the engine is opened and never run.
        value_scan: read every weight and refuse NaN, infinities and values beyond the target's type.
        weights: how weights used in place get into the package: ``link`` shares the checkpoint's files
            and takes no space, but ``onnx.load``, ``onnx.checker`` and polygraphy refuse hard links;
            ``copy`` makes files that every tool opens; ``auto`` links where it can. See
            :data:`q2export.package.placement.PlacementMode`.
        timing_cache: file of kernels the full TensorRT has measured, read and updated; it speeds up the next
            build.
        quality_text: text, or a UTF-8 file of it, on which the loss by quantizing is measured; None is a
            short built-in text. As with all comparisons with PyTorch, nothing is measured without ``parity``.
        allow_quality_loss: keep an engine whose quality breaks the limits of the profile.
        overwrite: replace an existing package.

    Raises:
        Q2ExportError: one of its family; the message says what to do.
    """
    options = BuildOptions(
        profile=profile,
        overrides=overrides or {},
        revision=revision,
        parity=parity,
        value_scan=value_scan,
        weights=weights,
        timing_cache=timing_cache,
        quality_text=quality_text,
        allow_quality_loss=allow_quality_loss,
        overwrite=overwrite,
    )
    return _build(model, Path(output), options)


def _build(model: str | Path, output: Path, options: BuildOptions) -> BuildResult:
    watch = Stopwatch()
    check_output(output.absolute(), options.overwrite, written_files)
    with watch.stage("load"):
        job = resolve_job(model, options)
    job.announce()
    with PackageWriter.open(output, options.overwrite, options.weights) as writer:
        made = stages.assemble(job, writer, scan="all" if options.value_scan else "none", watch=watch)
        engine = made.engine
        if job.tensorrt is not None:
            with watch.stage("engine"):
                engine = build_engine(writer, job.tensorrt, engine, job.profile, options.timing_cache)
        found = build_checks.check_build(job, options, writer, made, engine, watch)
        manifest = stages.describe(
            job,
            writer,
            made,
            engine,
            parity=found.parity,
            parity_skipped=found.parity_skipped,
            quality=found.quality,
            quality_skipped=found.quality_skipped,
            profile=job.profile,
        )
        writer.write_manifest(manifest)
        stages.check_loads(job, writer, watch)
    passes = made.graph.passes
    return BuildResult(writer.output, manifest, job.warnings, passes, watch.seconds, peak_rss_bytes())


def export(
    model: str | Path,
    output: str | Path,
    *,
    target: Literal["portable", "onnxruntime", "onnxruntime-cuda", "tensorrt"] = "portable",
    dtype: str | None = None,
    revision: str | None = None,
    weights: PlacementMode = "copy",
    golden: bool = False,
    overwrite: bool = False,
    max_capacity: int | None = None,
    quantization: Quantization | None = None,
) -> BuildResult:
    """Write the ONNX graph of a checkpoint; no weight is read that need not be converted.

    Values that are converted are checked as in :func:`build`; those used in place are not.

    Args:
        model: checkpoint folder or hub id.
        output: folder to make.
        target: ``portable`` is the canonical graph; the others are lowered.
        dtype: type of the graph; None is the checkpoint's own where the target runs in it. A portable graph
            of bfloat16 weights is float32 then: ONNX Runtime has no bfloat16 matmul on the CPU.
        golden: also write inputs for one step and what ONNX Runtime computes from them, for polygraphy.
        revision, overwrite: as in :func:`build`.
        weights: as in :func:`build`. Copies (reflinks, where the file system has them) are what every ONNX
            tool opens.
        max_capacity: tokens a sequence may hold; None is what the model holds.
        quantization: of the weights, of a checkpoint that is not quantized; ``activations`` holds for one
            that is, too.

    Raises:
        Q2ExportError: one of its family; nothing is left behind.
    """
    watch = Stopwatch()
    check_placement(weights)
    check_output(Path(output).absolute(), overwrite, written_files)
    with watch.stage("load"):
        job = resolve_export(
            model,
            target=target,
            dtype=dtype,
            revision=revision,
            max_capacity=max_capacity,
            quantization=quantization,
        )
    job.announce()
    with PackageWriter.open(Path(output), overwrite, weights) as writer:
        made = stages.assemble(job, writer, scan="converted", watch=watch)
        if golden:
            build_checks.add_golden(writer, made, watch)
        skipped = "exported, not built"
        manifest = stages.describe(
            job, writer, made, made.engine, parity=None, parity_skipped=skipped, profile=None
        )
        writer.write_manifest(manifest)
    warnings, passes = made.source.config.warnings, made.graph.passes
    return BuildResult(writer.output, manifest, warnings, passes, watch.seconds, peak_rss_bytes())


def verify(
    package: str | Path,
    model: str | Path,
    *,
    revision: str | None = None,
    prompts: Sequence[str] | None = None,
    text: str | Path | None = None,
    greedy_tokens: int = GREEDY_TOKENS,
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
        report: HTML page to write; refused before any work where it cannot be written.

    Returns:
        the report; ``passed`` is the verdict, a wrong engine is no exception.

    Raises:
        Q2ExportError: the two cannot be compared.
    """
    from q2export.compare.verification import verify_package

    options = VerifyOptions(revision, prompts, text, greedy_tokens, threads)
    return verify_package(package, model, options, None if report is None else Path(report))


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    weights: WeightType = "int4",
    block_size: int = 32,
    symmetric: bool = True,
    embedding: bool = True,
    keep: Sequence[str] = (),
    method: Method | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> CheckpointResult[QuantizeResult]:
    """Write a checkpoint folder with quantized weights, which every command takes as a model.

    Rounding to nearest needs neither PyTorch nor onnx, and a few megabytes of the model are in memory at a
    time. ``gptq`` needs PyTorch and holds one layer in float32 with the activations of the calibration text.

    Args:
        model: checkpoint folder or hub id, not quantized itself.
        output: folder to make; nothing is left there after an error.
        weights: ``int4`` or ``int8``.
        block_size: values that share a scale: 32, 64 or 128.
        symmetric: without zero points.
        embedding: quantize the embedding and the head, too.
        keep: shell patterns of Hugging Face names of weights to leave in high precision.
        method: ``round-to-nearest`` or ``gptq``; None is ``gptq`` exactly where there is calibration text.
        calibration: UTF-8 file of text like that which the model will see.
        calibration_tokens: use at most so many of it; None is 32,768. A mixture of experts wants more than a
            dense model: an expert is calibrated only if it sees at least as many tokens as its matrices have
            columns.
        revision: of a hub id.
        overwrite: replace an existing quantized checkpoint.

    Raises:
        Q2ExportError: one of its family; the message says what to do.
    """
    how = checkpoints.Calibration(
        method, None if calibration is None else Path(calibration), calibration_tokens
    )
    quantization = Quantization(
        weights=weights,
        block_size=block_size,
        symmetric=symmetric,
        method=how.chosen,
        embedding=embedding,
        keep=tuple(keep),
    )
    return checkpoints.quantize(
        model, Path(output), quantization, how, revision=revision, overwrite=overwrite
    )


def quality_report(
    model: str | Path,
    quantized: str | Path,
    *,
    text: str | Path | None = None,
    thresholds: QualityThresholds | None = None,
    revision: str | None = None,
) -> QualityReport:
    """Compare a quantized checkpoint with the model it was made from, under PyTorch, layer by layer.

    Args:
        model: checkpoint folder or hub id, not quantized.
        quantized: folder that :func:`quantize` made, or a published quantized checkpoint in the packed form.
        text: to measure on, or a UTF-8 file of it; None takes a short built-in text.
        thresholds: what is allowed; None judges nothing.
        revision: of a hub id.

    Raises:
        Q2ExportError: a folder is not what it should be, or the text is too short.
    """
    from q2export.compare.quality.checkpoints import compare_checkpoints

    return compare_checkpoints(model, Path(quantized), text=text, thresholds=thresholds, revision=revision)


def repack(
    model: str | Path, output: str | Path, *, revision: str | None = None, overwrite: bool = False
) -> CheckpointResult[RepackResult]:
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
    return checkpoints.repack(model, Path(output), revision=revision, overwrite=overwrite)
