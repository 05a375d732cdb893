"""Comparing an engine with the PyTorch reference: what ``build`` and ``verify`` share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export import engine_build
from q2export.errors import PackageError, ParityError
from q2export.job import Job
from q2export.manifest import EngineInfo, Manifest, ParitySummary, installed_versions
from q2export.package import PackageWriter
from q2export.parity import smoke_prompts
from q2export.profile import Profile

if TYPE_CHECKING:
    from q2export.exporter.source import Source
    from q2export.runtime.verify.contracts import EngineProbe, ReferenceRun
    from q2export.runtime.verify.results import ParityReport

LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "tokenizers", "polygraphy")
"""Distributions whose versions are recorded."""

SMOKE_GREEDY_TOKENS = 16


@dataclass(frozen=True)
class StreamedReference:
    """The exporter's reference in the form the runtime's comparison takes."""

    source: Source

    def run(self, sequences: Sequence[Sequence[int]], capture: Collection[str] = ()) -> ReferenceRun:
        """See :meth:`q2export.runtime.verify.contracts.Reference.run`."""
        from q2export.exporter.reference import CheckpointReference
        from q2export.runtime.verify.contracts import ReferenceRun

        result = CheckpointReference(self.source).run(sequences, capture)
        return ReferenceRun(result.logits, result.captures)


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
    from q2export.runtime.verify.backend_probe import BackendProbe
    from q2export.runtime.verify.onnxruntime_probe import OnnxRuntimeProbe

    if engine.tensorrt is None:
        return OnnxRuntimeProbe(folder, engine, threads=threads, prepack=prepack)
    from q2export.runtime.backends.tensorrt.session import open_backend

    backend = open_backend(folder, engine, engine.tensorrt, rebuild_command)
    return BackendProbe(lambda: backend)


def parity_report(
    name: str,
    probe: EngineProbe,
    source: Source,
    profile: Profile,
    prompts: Sequence[Sequence[int]],
    *,
    model_id: str,
    command: str,
    greedy_tokens: int,
    text_tokens: Sequence[int] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> ParityReport:
    """Compare an engine, called ``name`` in the report, with the PyTorch reference of the checkpoint."""
    from q2export.runtime.verify.compare import compare
    from q2export.runtime.verify.results import RunInfo

    info = RunInfo(name, model_id, command, installed_versions(LIBRARIES))
    return compare(
        StreamedReference(source),
        probe,
        prompts,
        profile.parity,
        info=info,
        n_greedy=greedy_tokens,
        text_tokens=text_tokens,
        decode=decode,
    )


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
    pairs = {
        "model_type": (manifest.model.model_type, config.model_type),
        "num_hidden_layers": (engine.num_hidden_layers, config.num_hidden_layers),
        "num_key_value_heads": (engine.num_key_value_heads, config.num_key_value_heads),
        "head_dim": (engine.head_dim, config.head_dim),
        "vocab_size": (engine.vocab_size, config.vocab_size),
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
    if job.engine is not None and (reason := engine_build.why_not_run(job.profile)):
        return None, reason
    command = f"q2export verify PACKAGE --model {shlex.quote(job.model.id)}"
    probe = engine_probe(
        writer.folder, engine, threads=job.profile.threads, prepack=prepack, rebuild_command=command
    )
    report = parity_report(
        writer.folder.name,
        probe,
        source,
        job.profile,
        smoke_prompts(writer.folder, engine),
        model_id=job.model.id,
        command=command,
        greedy_tokens=min(SMOKE_GREEDY_TOKENS, engine.max_capacity // 2),
    )
    _require_passed(report)
    writer.add_text("parity.json", report.to_json() + "\n")
    return parity_summary(report), None


def _require_passed(report: ParityReport) -> None:
    if not report.passed:
        from q2export.runtime.verify.summary import summary_lines

        raise ParityError(
            "the engine is not equal to PyTorch; nothing was kept\n" + "\n".join(summary_lines(report))
        )
