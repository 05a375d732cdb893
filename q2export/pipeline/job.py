"""A build, resolved and checked before any work: model, profile, type; for TensorRT builder and memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2export.contracts.memory import CacheShape
from q2export.contracts.profile import Profile, Target
from q2export.contracts.profile_loading import fit_to_model, load_profile
from q2export.contracts.progress import NOTICE
from q2export.contracts.quantization import Quantization
from q2export.errors import OptionError, ProfileError
from q2export.pipeline import engine as engine_build
from q2export.pipeline.engine import EnginePlan
from q2export.pipeline.gpu import GpuPlan, plan_onnxruntime
from q2export.pipeline.model_source import ModelSource, resolve_model
from q2export.pipeline.options import BuildOptions
from q2export.strict.codec import to_plain

if TYPE_CHECKING:
    from q2export.exporter.weights.plan import WeightPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be built.

    Attributes:
        model: the checkpoint's name and folder.
        weights: its weights, and what is done to them first.
        target: of the graph.
        profile: what to build for, its capacity lowered to what the model holds.
        dtype: of the graph.
        gpu: of an engine for a GPU; None for others.
    """

    model: ModelSource
    weights: WeightPlan
    target: Target
    profile: Profile
    dtype: str
    gpu: GpuPlan | None = None

    @property
    def tensorrt(self) -> EnginePlan | None:
        """The plan of a TensorRT build; None for others."""
        return self.gpu if isinstance(self.gpu, EnginePlan) else None

    @property
    def max_capacity(self) -> int:
        """Tokens a sequence may hold."""
        return self.profile.capacity.max

    @property
    def kv_dtype(self) -> str:
        """Type of the KV cache."""
        return self.dtype if self.profile.kv_dtype == "auto" else self.profile.kv_dtype

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves attention, one sentence each: of the configuration, and of what the package lacks."""
        folder, found = self.weights.folder, self.weights.config.warnings
        if self.gpu is not None:
            found = (*found, *self.gpu.warnings)
        if (folder / "tokenizer.json").exists():
            return found
        return (
            *found,
            f"{folder} holds no tokenizer.json: the package takes and gives token ids, no text. To add one: "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )

    def announce(self) -> None:
        """Log what somebody should know before the work begins."""
        if self.gpu is not None:
            self.gpu.announce()
        if self.target == "portable" and self.weights.dtype == "bfloat16":
            if self.dtype == "bfloat16":
                _log.warning(
                    "ONNX Runtime cannot load this graph on the CPU, where it has no bfloat16 matmul; a "
                    "float32 graph, the default, runs anywhere"
                )
            elif self.dtype == "float32":
                _log.log(
                    NOTICE,
                    "bfloat16 weights are written as float32, which runs anywhere; with dtype bfloat16 they "
                    "would be read in place, for runtimes that multiply them, such as TensorRT",
                )

    def describe(self) -> dict[str, Any]:
        """Plain data for ``build --dry-run``."""
        from q2export.exporter.weights.sizes import planned_bytes

        config = self.weights.config
        planned = planned_bytes(self.weights, self.target, self.dtype)
        shape = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        return {
            "model": {
                "id": self.model.id,
                "revision": self.model.revision,
                "model_type": config.model_type,
                "dtype": self.weights.dtype,
            },
            "target": self.target,
            "dtype": self.dtype,
            "max_capacity": self.max_capacity,
            "weights": {
                "in_place_bytes": planned.in_place,
                "converted_bytes": planned.converted,
                "quantized_bytes": planned.quantized,
            },
            "quantization": to_plain(self.weights.quantization),
            "kv_cache_bytes_per_token": CacheShape(*shape, self.kv_dtype).bytes_per_token,
            "gpu": None if self.gpu is None else self.gpu.describe(),
            "profile": self.profile.to_dict(),
            "origin": dict(self.profile.origin),
            "warnings": list(self.warnings),
        }


def resolve_job(model: str | Path, options: BuildOptions) -> Job:
    """Resolve and check everything that can be known before a weight is read.

    Raises:
        Q2ExportError: what ``build`` would refuse.
    """
    from q2export.runtime.text import open_text, warn_of_unsupported

    resolved = load_profile(options.profile, options.overrides)
    if resolved.target == "portable":
        raise ProfileError("target 'portable' has no engine to build; export it")
    trt = engine_build.choose_builder(resolved) if resolved.target == "tensorrt" else None
    if chosen := resolved.target == "tensorrt" and trt is None:
        resolved = _for_onnxruntime(options)
    found = resolve_model(model, options.revision)
    job = resolve_graph(found, resolved.target, resolved, resolved.graph_dtype)
    # The package will hold the same files: what `load` refuses of them is refused before the work.
    text = open_text(job.weights.folder, job.weights.config.vocab_size)
    warn_of_unsupported(job.weights.folder, text.defaults)
    if trt is not None:
        job = replace(job, gpu=engine_build.plan_engine(trt, job.weights, job.profile, job.dtype))
    elif job.target == "onnxruntime-cuda":
        job = replace(job, gpu=plan_onnxruntime(job.weights, job.profile, job.dtype, chosen=chosen))
    _refuse_idle_options(job, options)
    return job


def _for_onnxruntime(options: BuildOptions) -> Profile:
    """The profile for ONNX Runtime, as if that had been asked for: a rebuild makes the same engine."""
    try:
        return load_profile(options.profile, {**options.overrides, "builder": "onnxruntime"})
    except ProfileError as error:
        raise ProfileError(
            f"{error}; no TensorRT here both builds for this GPU and lists it as supported, so the builder "
            "'auto' takes ONNX Runtime: name the builder, 'tensorrt' or 'rtx', or leave out what is for "
            "TensorRT"
        ) from error


def _refuse_idle_options(job: Job, options: BuildOptions) -> None:
    """Refuse an option that has nothing to act on in this job."""
    if options.timing_cache is not None and (job.gpu is None or job.gpu.builder != "tensorrt"):
        raise OptionError("timing_cache", "is for engines that the full TensorRT builds; leave it out")
    if job.weights.original is None:
        options.refuse_quality_options("no weight is quantized by this build")


def resolve_export(
    model: str | Path,
    *,
    target: Target,
    dtype: str | None,
    revision: str | None,
    max_capacity: int | None,
    quantization: Quantization | None,
) -> Job:
    """Resolve a graph without an engine; arguments as in ``q2export.export``.

    Raises:
        Q2ExportError: the checkpoint is not in order, or the target cannot honour what is asked for.
    """
    from q2export.exporter.checkpoint.config import load_config

    found = resolve_model(model, revision)
    longest = load_config(found.folder).context_length
    if max_capacity is not None and not 1 <= max_capacity <= longest:
        raise OptionError(
            "max_capacity", f"must be from 1 to {longest}, as the model holds, found {max_capacity}"
        )
    capacity = max_capacity or longest
    # The ranges of a graph are as wide as the model.
    base = load_profile("cpu", {"capacity.max": capacity, "capacity.opt": min(capacity, 2048)})
    asked = quantization or Quantization()
    job = resolve_graph(found, target, replace(base, quantization=asked, kv_dtype="auto"), dtype)
    if job.weights.quantization is None and asked != Quantization():
        raise OptionError(
            "quantization", "says how weights are quantized, but not to what: give weights, too"
        )
    return job


def resolve_graph(found: ModelSource, target: Target, profile: Profile, dtype: str | None) -> Job:
    """Resolve a job as far as its graph.

    Args:
        found: the checkpoint.
        target: what the graph is for.
        profile: what else it is made for.
        dtype: of the graph; None is the checkpoint's own where the target takes it.

    Raises:
        Q2ExportError: the checkpoint is not in order, or the target cannot honour what is asked for.
    """
    from q2export.exporter.export import target_dtype
    from q2export.exporter.lowering.limits import check_activations, check_quantized
    from q2export.exporter.weights.plan import plan_weights

    given = profile.overrides()
    section = "quantization."
    explicit = [key.removeprefix(section) for key in given if key.startswith(section)]
    weights = plan_weights(found.folder, profile.quantization, explicit)
    if weights.quantization is None:
        _refuse_idle_quantization(given)
    chosen = target_dtype(weights.dtype, target, dtype)
    check_quantized(target, weights.packed.values(), weights.config)
    check_activations(target, profile.quantization.activations, weights.dtype, bool(weights.packed))
    return Job(found, weights, target, fit_to_model(profile, weights.config.context_length), chosen)


def _refuse_idle_quantization(given: Mapping[str, object]) -> None:
    """Refuse what was asked of quantized weights where none are."""
    for key, value in given.items():
        if (key, value) == ("quantization.activations", "bfloat16"):
            continue
        if key.startswith(("quantization.", "quality.")) and key != "quantization.weights":
            raise ProfileError(
                f"{key} is given, but no weight is quantized: leave it out, or give quantization.weights, too"
            )
