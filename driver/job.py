"""A build, resolved and checked before any work: model, profile, type; for TensorRT builder and memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2export import engine_build, pipeline
from q2export.engine_build import EnginePlan
from q2export.errors import ParityError
from q2export.manifest import EngineInfo, ParitySummary
from q2export.memory import CacheShape
from q2export.model_source import ModelSource, resolve_model
from q2export.package import PackageWriter
from q2export.parity import smoke_prompts
from q2export.profile import Profile
from q2export.profile_loading import load_profile

if TYPE_CHECKING:
    from q2export.exporter.export import Source
    from q2export.runtime.verify.results import ParityReport

SMOKE_GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Job:
    """What is to be built.

    Attributes:
        model: the checkpoint's name and folder. source: its checked headers.
        profile: what to build for.
        dtype: of the graph.
        capacity: largest capacity of the engine, in tokens.
        engine: of a TensorRT build; None for others.
    """

    model: ModelSource
    source: Source
    profile: Profile
    dtype: str
    capacity: int
    engine: EnginePlan | None

    def describe(self) -> dict[str, Any]:
        """Plain data for ``build --dry-run``."""
        from q2export.exporter.sizes import planned_bytes

        config = self.source.config
        weights = planned_bytes(self.source, self.profile.target, self.dtype)
        shape = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        return {
            "model": {
                "id": self.model.id,
                "revision": self.model.revision,
                "model_type": config.model_type,
                "dtype": self.source.dtype,
            },
            "target": self.profile.target,
            "dtype": self.dtype,
            "max_capacity": self.capacity,
            "weights": {"in_place_bytes": weights.in_place, "converted_bytes": weights.converted},
            "kv_cache_bytes_per_token": CacheShape(*shape, self.dtype).bytes_per_token,
            "tensorrt": None if self.engine is None else self.engine.describe(),
            "profile": self.profile.to_dict(),
            "origin": dict(self.profile.origin),
            "warnings": list(config.warnings),
        }


def resolve_job(
    model: str | Path,
    profile: str | Path,
    overrides: Mapping[str, object] | None,
    revision: str | None,
) -> Job:
    """Resolve and check everything that can be known before a weight is read; arguments as in ``api.build``.

    Raises:
        Q2ExportError: what ``build`` would refuse.
    """
    from q2export.exporter.export import load_source, target_dtype

    resolved = load_profile(profile, overrides)
    trt = engine_build.select_builder(resolved) if resolved.target == "tensorrt" else None
    found = resolve_model(model, revision)
    source = load_source(found.folder)
    dtype = target_dtype(source, resolved.target, resolved.graph_dtype)
    capacity = pipeline.max_capacity(source, resolved)
    engine = engine_build.plan_engine(trt, source, resolved, dtype, capacity) if trt is not None else None
    return Job(found, source, resolved, dtype, capacity, engine)


def compare(writer: PackageWriter, job: Job, engine: EngineInfo) -> tuple[ParitySummary | None, str | None]:
    """Compare a finished engine with PyTorch on two short prompts, before its package is put in place.

    Returns:
        the outcome, or why there is none: a TensorRT engine needs its GPU.

    Raises:
        ParityError: they differ by more than the profile allows.
    """
    if job.engine is not None and (reason := engine_build.why_not_run(job.profile)):
        return None, reason
    command = f"q2export verify PACKAGE --model {shlex.quote(job.model.id)}"
    threads = job.profile.threads
    report = pipeline.parity_report(
        writer.folder.name,
        pipeline.engine_probe(writer.folder, engine, threads=threads, rebuild_command=command),
        job.source,
        job.profile,
        smoke_prompts(writer.folder, engine),
        model_id=job.model.id,
        command=command,
        greedy_tokens=min(SMOKE_GREEDY_TOKENS, engine.max_capacity // 2),
    )
    _require_passed(report)
    writer.add_text("parity.json", report.to_json() + "\n")
    return pipeline.parity_summary(report), None


def _require_passed(report: ParityReport) -> None:
    if not report.passed:
        from q2export.runtime.verify.summary import summary_lines

        raise ParityError(
            "the engine is not equal to PyTorch; nothing was kept\n" + "\n".join(summary_lines(report))
        )
