"""Comparing an engine with the PyTorch reference: what ``build`` and ``verify`` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare.prompts import ParityPrompts, parity_prompts, smoke_prompts
from q2export.compare.verify.results import RunInfo
from q2export.contracts.commands import command_line
from q2export.contracts.profile import Profile
from q2export.contracts.profile_loading import load_profile
from q2export.errors import PackageError, ParityError
from q2export.package.manifest import (
    LIBRARIES,
    EngineInfo,
    Manifest,
    ParitySummary,
    installed_versions,
)
from q2export.package.reader import Package
from q2export.package.writer import PackageWriter
from q2export.pipeline import engine as engine_build
from q2export.pipeline.job import Job
from q2export.pipeline.model_source import ModelSource

if TYPE_CHECKING:
    from q2export.compare.verify.engine_probe import EngineProbe
    from q2export.compare.verify.results import ParityReport
    from q2export.exporter.checkpoint.source import Source


SMOKE_GREEDY_TOKENS = 16


def engine_probe(
    folder: Path, engine: EngineInfo, *, threads: int, prepack: bool, rebuild_command: str
) -> EngineProbe:
    """The engine in ``folder``, to be compared.

    Args:
        folder: a package, perhaps not yet complete.
        engine: what it holds.
        threads: CPU threads of an ONNX Runtime engine; 0 is one per core.
        prepack: whether ONNX Runtime keeps its own copy of the matrices, as it will when the engine is used:
            with quantized weights the arithmetic depends on it.
        rebuild_command: for messages.

    Raises:
        PackageError: a TensorRT engine cannot run here, for want of a GPU, say.
    """
    from q2export.compare.verify.engine_probe import EngineProbe
    from q2export.compare.verify.onnxruntime_probe import OnnxRuntimeProbe

    if engine.tensorrt is None:
        return OnnxRuntimeProbe(folder, engine, threads=threads, prepack=prepack)
    from q2export.runtime.backends.tensorrt.session import open_backend

    backend = open_backend(folder, engine, engine.tensorrt, rebuild_command)
    return EngineProbe(lambda: backend)


@dataclass(frozen=True)
class Comparison:
    """An engine in a folder and the checkpoint it is compared with.

    Attributes:
        folder: a package, perhaps not yet complete.
        engine: what it holds.
        source: the checkpoint whose weights the engine has; quantized ones are dequantized for PyTorch.
        profile: its thresholds, and the threads.
        prepack: see :func:`engine_probe`.
        info: for the report.
        rebuild_command: for messages.
    """

    folder: Path
    engine: EngineInfo
    source: Source
    profile: Profile
    prepack: bool
    info: RunInfo
    rebuild_command: str

    @property
    def rounds_activations(self) -> bool:
        """Whether the engine multiplies quantized weights with activations rounded to int8."""
        is_quantized = self.source.quantization is not None and self.engine.tensorrt is None
        return is_quantized and "int8" in (
            self.profile.quantization.activations,
            self.profile.quantization.prefill,
        )

    def exactly(self) -> Comparison:
        """The same graph with its matmuls in float32, at the thresholds of float32.

        Without its own copy of the matrices ONNX Runtime dequantizes them, and multiplies in float32.
        Rounding then hides no fault of the graph or its weights.
        """
        return replace(
            self,
            engine=replace(self.engine, prefill_file=None),
            profile=replace(self.profile, parity=load_profile("cpu").parity),
            prepack=False,
        )

    def report(self, prompts: ParityPrompts) -> ParityReport:
        """Compare."""
        from q2export.compare.verify.compare import compare
        from q2export.exporter.reference import CheckpointReference

        probe = engine_probe(
            self.folder,
            self.engine,
            threads=self.profile.threads,
            prepack=self.prepack,
            rebuild_command=self.rebuild_command,
        )
        return compare(
            CheckpointReference(self.source),
            probe,
            prompts.prompts,
            self.profile.parity,
            info=self.info,
            n_greedy=prompts.greedy_tokens,
            text_tokens=prompts.text,
            decode=prompts.decode,
        )

    def full_report(self, prompts: ParityPrompts) -> ParityReport:
        """Compare; where activations are rounded, first without that, on the prompts alone.

        Returns:
            the first report if that failed, for it names the layer at fault; else that of the engine itself.
        """
        if self.rounds_activations:
            exact = self.exactly().report(replace(prompts, greedy_tokens=0, text=None))
            if not exact.passed:
                return exact
        return self.report(prompts)


def run_info(engine: str, model: str, command: str = "") -> RunInfo:
    """What a report says of a run; a build has no ``command`` that repeats its check alone."""
    return RunInfo(engine, model, command, installed_versions(LIBRARIES))


def rebuild_command(job: Job) -> str:
    """For messages about an engine whose package has no manifest yet."""
    return command_line("build", "--model", job.model.id, "--profile", job.profile.name)


def parity_summary(report: ParityReport) -> ParitySummary:
    """The numbers of a report that go into the manifest."""
    total = report.total
    if total is None:
        raise ParityError("parity failed: " + "; ".join(report.failures))
    return ParitySummary(
        passed=report.passed,
        tokens=total.tokens,
        max_abs_error=total.max_abs_error,
        mean_abs_error=total.mean_abs_error,
        max_kl=total.max_kl,
        min_cosine=total.min_cosine,
        top1_agreement=total.top1_agreement_with_ties,
    )


def check_same_model(manifest: Manifest, source: Source) -> None:
    """Refuse a checkpoint of another shape: comparing it would only say that it is another model."""
    engine, config = manifest.engine, source.config
    pairs: dict[str, tuple[object, object]] = {
        "model_type": (manifest.model.model_type, config.model_type),
        "num_hidden_layers": (engine.num_hidden_layers, config.num_hidden_layers),
        "num_key_value_heads": (engine.num_key_value_heads, config.num_key_value_heads),
        "head_dim": (engine.head_dim, config.head_dim),
        "vocab_size": (engine.vocab_size, config.vocab_size),
    }
    if (quantized := source.quantization) is not None:
        ours = manifest.quantization
        pairs |= {
            "quantization bits": (ours and ours.bits, quantized.bits),
            "quantization block_size": (ours and ours.block_size, quantized.block_size),
            "quantization symmetric": (ours and ours.symmetric, quantized.symmetric),
        }
    for name, (built, found) in pairs.items():
        if built != found:
            raise PackageError(
                f"{source.folder}: not the model this package was built from: {name} is "
                f"{found}, the package has {built}"
            )


def check_engine(
    writer: PackageWriter, job: Job, source: Source, engine: EngineInfo, *, prepack: bool
) -> tuple[ParitySummary | None, str | None]:
    """Compare a finished engine with PyTorch on two short prompts, before its package is put in place.

    Args:
        writer: the package.
        job: what is being built.
        source: the checkpoint whose weights the engine has; quantized ones are dequantized for PyTorch.
        engine: describes the engine.
        prepack: how ONNX Runtime will run it.

    Returns:
        the outcome, or why there is none: a TensorRT engine needs its GPU.

    Raises:
        ParityError: they differ by more than the profile allows.
    """
    if job.engine is not None:
        reason = engine_build.why_not_run(job.profile)
        if reason is not None:
            return None, reason
    comparison = Comparison(
        folder=writer.folder,
        engine=engine,
        source=source,
        profile=job.profile,
        prepack=prepack,
        info=run_info(f"{job.profile.name} engine", job.model.id),
        rebuild_command=rebuild_command(job),
    )
    tokens = min(SMOKE_GREEDY_TOKENS, engine.max_capacity // 2)
    prompts = ParityPrompts(smoke_prompts(writer.folder, engine), None, tokens, None)
    report = comparison.full_report(prompts)
    _require_passed(report)
    writer.add_text("parity.json", report.to_json() + "\n")
    return parity_summary(report), None


def _require_passed(report: ParityReport) -> None:
    if not report.passed:
        from q2export.compare.verify.summary import summary_lines

        raise ParityError(
            "the engine is not equal to PyTorch; nothing was kept\n" + "\n".join(summary_lines(report))
        )


def verify_parity(
    opened: Package,
    found: ModelSource,
    source: Source,
    *,
    prompts: Sequence[str] | None,
    text: str | None,
    greedy_tokens: int,
    threads: int | None,
    command: str,
) -> ParityReport:
    """Compare a package with the PyTorch reference of the checkpoint whose weights it has.

    Args:
        opened: the package.
        found: how the checkpoint is called. source: the checkpoint.
        prompts, text, greedy_tokens: see :func:`q2export.compare.prompts.parity_prompts`.
        threads: CPU threads; None is what the profile says.
        command: repeats the comparison, for the report.

    Raises:
        ParityError: the two cannot be compared.
    """
    manifest = opened.manifest
    comparison = Comparison(
        folder=opened.folder,
        engine=manifest.engine,
        source=source,
        profile=replace(manifest.built_for, threads=manifest.threads if threads is None else threads),
        prepack=manifest.prepacks,
        info=run_info(opened.folder.name, found.id, command),
        rebuild_command=opened.rebuild_command(),
    )
    chosen = parity_prompts(opened.folder, manifest.engine, prompts, text, greedy_tokens)
    return comparison.full_report(chosen)
