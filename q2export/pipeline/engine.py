"""The TensorRT half of ``build``: which builder, and the engine itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from q2export.contracts import opspec
from q2export.contracts.profile import Profile
from q2export.contracts.progress import progress_bar
from q2export.errors import ExportError, MissingDependencyError
from q2export.inspect.machine import available_memory_bytes, gpus
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.package.placement import require_free_space
from q2export.package.writer import PackageWriter
from q2export.pipeline.gpu import GpuPlan, gpu_need
from q2export.pipeline.memory import host_bytes_to_build

if TYPE_CHECKING:
    from q2export.exporter.weights.plan import WeightPlan

ENGINE_FILE = "rank0.engine"
"""One engine per GPU of a tensor-parallel group; there is one GPU."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EnginePlan(GpuPlan):
    """Everything known of a TensorRT build before it begins.

    Attributes:
        trt: the library that will build.
    """

    trt: ModuleType
    builder_version: str


def choose_builder(profile: Profile) -> ModuleType | None:
    """Import the TensorRT that will build for a profile; None where the builder ``auto`` takes ONNX Runtime.

    It does where no TensorRT is at hand that builds for the profile's GPU and lists it as supported.

    Raises:
        MissingDependencyError: the builder that is asked for is not installed.
        ExportError: it cannot build for the profile's GPU; says what to install.
    """
    from q2export.plugins.tensorrt.loader import gpu_present
    from q2export.plugins.tensorrt.targets import unlisted

    if profile.builder != "auto":
        return _imported(profile.builder, profile)
    for builder in ("tensorrt", "rtx") if gpu_present() else ("rtx",):
        try:
            trt = _imported(builder, profile)
        except (MissingDependencyError, ExportError) as error:
            _log.info("builder %s: %s", builder, error)
            continue
        if unlisted(trt, _capability(profile)) is None:
            return trt
    return None


def _imported(builder: str, profile: Profile) -> ModuleType:
    from q2export.plugins.tensorrt.loader import import_tensorrt, is_rtx
    from q2export.plugins.tensorrt.targets import check_target

    trt = import_tensorrt(builder)
    present = () if is_rtx(trt) else tuple(gpu.compute_capability for gpu in gpus())
    check_target(trt, profile.gpu or profile.name, _capability(profile), present)
    return trt


def plan_engine(trt: ModuleType, weights: WeightPlan, profile: Profile, dtype: str) -> EnginePlan:
    """Check that the model fits the GPU, and compute what building it takes. Nothing is written or read.

    Args:
        trt: from :func:`choose_builder`.
        weights: of the model.
        profile: what to build for, fit to the model.
        dtype: of the graph.

    Raises:
        ProfileError: it does not fit; names what would.
    """
    from q2export.exporter.weights.sizes import planned_bytes
    from q2export.plugins.tensorrt.loader import is_rtx
    from q2export.plugins.tensorrt.targets import unlisted

    warning = unlisted(trt, _capability(profile))
    return EnginePlan(
        builder="rtx" if is_rtx(trt) else "tensorrt",
        builder_version=str(trt.__version__),
        need=gpu_need(weights, profile, dtype),
        warnings=() if warning is None else (warning,),
        host_bytes=host_bytes_to_build(planned_bytes(weights, "tensorrt", dtype).total),
        host_available=available_memory_bytes(),
        trt=trt,
    )


def why_not_run(profile: Profile) -> str | None:
    """Why this machine cannot run an engine for the GPU of a profile; None where it can."""
    if profile.target == "onnxruntime-cuda":
        from q2export.runtime.backends.onnxruntime_cuda import provider

        if provider.why_not_run() is None:
            return None
        return "needs onnxruntime-gpu and an NVIDIA GPU; run 'q2export verify' on such a machine"
    present = [gpu.compute_capability for gpu in gpus()]
    wanted = profile.compute_capability
    if wanted in present:
        return None
    found = f"only {', '.join(present)}" if present else "no GPU"
    return (
        f"needs a GPU of compute capability {wanted}, {found} here; run 'q2export verify' on such a machine"
    )


def build_engine(
    writer: PackageWriter,
    plan: EnginePlan,
    graph_engine: EngineInfo,
    profile: Profile,
    timing_cache: Path | None = None,
) -> EngineInfo:
    """Build the engine from the package's own ONNX file, into the package.

    Args:
        writer: the package; its ONNX file and weights are written.
        plan: from :func:`plan_engine`.
        graph_engine: describes the ONNX file.
        profile: what to build for.
        timing_cache: file of measured kernels, read and updated; the full TensorRT only.

    Returns:
        The description of the engine.

    Raises:
        ExportError: TensorRT refuses the graph, or the ranges.
        PackageError: not enough space.
    """
    from q2export.plugins.tensorrt.builder import BuildOptions, Network
    from q2export.plugins.tensorrt.callbacks import PROGRESS_STEPS

    options = BuildOptions(
        compute_capability=_capability(profile),
        profiles=profile.step_ranges(),
        workspace_mib=profile.workspace_mib,
        version_compatible=profile.version_compatible,
        weight_streaming=profile.weight_streaming,
        timing_cache=timing_cache,
    )
    need = plan.need
    require_free_space(writer.folder, need.weights + need.streamed_weights, "the engine")
    network = Network(plan.trt, writer.folder / graph_engine.file)
    with (
        progress_bar("building engine", PROGRESS_STEPS, "it") as advance,
        writer.open_hashed(ENGINE_FILE) as sink,
    ):
        network.build(options, sink, advance)
    info = TensorRTInfo(
        builder="rtx" if plan.builder == "rtx" else "tensorrt",
        builder_version=plan.builder_version,
        compute_capability=options.compute_capability,
        plugin_contract_version=opspec.CONTRACT_VERSION,
        version_compatible=options.version_compatible,
        weight_streaming=options.weight_streaming,
    )
    return replace(graph_engine, format="tensorrt", file=ENGINE_FILE, tensorrt=info)


def _capability(profile: Profile) -> str:
    if profile.compute_capability is None:
        raise ExportError(f"profile {profile.name!r} names no compute capability")
    return profile.compute_capability
