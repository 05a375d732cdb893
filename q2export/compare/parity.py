"""Comparing an engine with the PyTorch reference: what ``build`` and ``verify`` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from q2export.compare.engine_under_test import EngineUnderTest
from q2export.compare.options import VerifyOptions
from q2export.compare.prompts import ParityPrompts, parity_prompts, smoke_prompts
from q2export.compare.quality.text import words_of
from q2export.compare.verify.results import RunInfo
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

if TYPE_CHECKING:
    from q2export.compare.verify.results import ParityReport
    from q2export.exporter.checkpoint.source import Source


SMOKE_GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Comparison:
    """An engine and the checkpoint it is compared with.

    Attributes:
        engine: how it is run.
        source: the checkpoint whose weights the engine has; quantized ones are dequantized for PyTorch.
        profile: its thresholds, and whether activations are rounded.
        info: for the report.
    """

    engine: EngineUnderTest
    source: Source
    profile: Profile
    info: RunInfo

    @property
    def rounds_activations(self) -> bool:
        """Whether the engine rounds activations when it multiplies them."""
        return self.engine.info.tensorrt is None and self.profile.quantization.activations != "float32"

    def report(self, prompts: ParityPrompts) -> ParityReport:
        """Compare."""
        from q2export.compare.verify.compare import compare
        from q2export.exporter.reference import CheckpointReference

        return compare(
            CheckpointReference(self.source),
            self.engine.probe(),
            prompts.prompts,
            self.profile.parity,
            info=self.info,
            n_greedy=prompts.greedy_tokens,
            text_tokens=prompts.text,
            decode=prompts.decode,
        )

    def full_report(self, prompts: ParityPrompts) -> ParityReport:
        """Compare; where activations are rounded, first in float32 on the prompts alone, at float32's limits.

        Rounding then hides no fault of the graph or its weights.

        Returns:
            the first report if that failed, for it names the layer at fault; else that of the engine itself.
        """
        if self.rounds_activations:
            in_float32 = replace(self.profile, parity=load_profile("cpu").parity)
            exact = replace(self, engine=self.engine.with_exact_matmuls(), profile=in_float32).report(
                replace(prompts, greedy_tokens=0, text=None)
            )
            if not exact.passed:
                return exact
        return self.report(prompts)


def run_info(engine: str, model: str, command: str = "") -> RunInfo:
    """What a report says of a run; a build has no ``command`` that repeats its check alone."""
    return RunInfo(engine, model, command, installed_versions(LIBRARIES))


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
    writer: PackageWriter, job: Job, source: Source, engine: EngineInfo
) -> tuple[ParitySummary | None, str | None]:
    """Compare a finished engine with PyTorch on two short prompts, before its package is put in place.

    Args:
        writer: the package.
        job: what is being built.
        source: the checkpoint whose weights the engine has; quantized ones are dequantized for PyTorch.
        engine: describes the engine.

    Returns:
        the outcome, or why there is none: an engine for a GPU needs one.

    Raises:
        ParityError: they differ by more than the profile allows.
    """
    if job.gpu is not None and (reason := engine_build.why_not_run(job.profile)) is not None:
        return None, reason
    tested = EngineUnderTest.of_build(writer.folder, job, engine)
    info = run_info(f"{job.profile.name} engine", job.model.id)
    tokens = min(SMOKE_GREEDY_TOKENS, engine.max_capacity // 2)
    prompts = ParityPrompts(smoke_prompts(writer.folder, engine), None, tokens, None)
    report = Comparison(tested, source, job.profile, info).full_report(prompts)
    if not report.passed:
        from q2export.compare.verify.summary import summary_lines

        raise ParityError(
            "the engine is not equal to PyTorch; nothing was kept\n" + "\n".join(summary_lines(report))
        )
    writer.add_text("parity.json", report.to_json() + "\n")
    return parity_summary(report), None


def verify_parity(package: Package, source: Source, info: RunInfo, options: VerifyOptions) -> ParityReport:
    """Compare a package with the PyTorch reference of the checkpoint whose weights it has.

    Args:
        package: opened. source: the checkpoint.
        info: for the report.
        options: what to compare on, and with how many threads.

    Raises:
        ParityError: the two cannot be compared.
    """
    text = None if options.text is None else words_of(options.text)
    prompts = parity_prompts(
        package.folder, package.manifest.engine, options.prompts, text, options.greedy_tokens
    )
    tested = EngineUnderTest.of_package(package, options.threads)
    return Comparison(tested, source, package.manifest.built_for, info).full_report(prompts)
