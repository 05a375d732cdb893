"""The TensorRT half of ``build``: which builder, whether the model fits, and the engine itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from q2export.contracts import opspec
from q2export.contracts.profile import Profile
from q2export.contracts.progress import NOTICE, progress_bar
from q2export.errors import ExportError
from q2export.inspect.machine import available_memory_bytes, gpus
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.package.placement import require_free_space
from q2export.package.writer import PackageWriter
from q2export.pipeline.fitting import check_gpu_memory, check_tensor_sizes, narrower_weights
from q2export.pipeline.memory import GpuNeed, budget, host_bytes_to_build

if TYPE_CHECKING:
    from q2export.exporter.weights.plan import WeightPlan

ENGINE_FILE = "rank0.engine"
"""One engine per GPU of a tensor-parallel group; there is one GPU."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnginePlan:
    """Everything known of a TensorRT build before it begins.

    Attributes:
        trt: the library that will build. builder: its kind, ``tensorrt`` or ``rtx``.
        gpu_need: memory on the GPU. host_bytes: RAM of this machine the build takes at its peak.
        host_available: RAM of this machine that is free; None where that is not known.
        warnings: of the engine, one sentence each.
    """

    trt: ModuleType
    builder: str
    gpu_need: GpuNeed
    host_bytes: int
    host_available: int | None
    warnings: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Plain data for ``build --dry-run``."""
        need = self.gpu_need
        return {
            "builder": self.builder,
            "builder_version": str(self.trt.__version__),
            "gpu_bytes": {
                "weights": need.weights,
                "kv_cache": need.kv_cache,
                "activations": need.activations,
                "total": need.total,
            },
            "streamed_weight_bytes": need.streamed_weights,
            "host_bytes": self.host_bytes,
            "host_available_bytes": self.host_available,
        }


def select_builder(profile: Profile) -> ModuleType:
    """Import the TensorRT that will build for a profile.

    Raises:
        MissingDependencyError: none is installed.
        ExportError: the one at hand cannot build for the profile's GPU; says what to install.
    """
    from q2export.plugins.tensorrt.loader import import_tensorrt, is_rtx
    from q2export.plugins.tensorrt.targets import check_target

    trt = import_tensorrt(profile.builder)
    present = () if is_rtx(trt) else tuple(gpu.compute_capability for gpu in gpus())
    check_target(trt, profile.gpu or profile.name, _capability(profile), present)
    return trt


def plan_engine(trt: ModuleType, weights: WeightPlan, profile: Profile, dtype: str) -> EnginePlan:
    """Check that the model fits the GPU, and compute what building it takes. Nothing is written or read.

    Args:
        trt: from :func:`select_builder`.
        weights: of the model.
        profile: what to build for, fit to the model.
        dtype: of the graph.

    Raises:
        ProfileError: it does not fit; names what would.
    """
    from q2export.exporter.weights.sizes import planned_bytes
    from q2export.plugins.tensorrt.loader import is_rtx
    from q2export.plugins.tensorrt.targets import unlisted

    check_tensor_sizes(weights.config, profile)
    total = planned_bytes(weights, "tensorrt", dtype).total
    wanted = budget(weights.config, dtype, total, profile)
    need = check_gpu_memory(wanted, profile, narrower_weights(weights, profile, dtype))
    builder = "rtx" if is_rtx(trt) else "tensorrt"
    warning = unlisted(trt, _capability(profile))
    host = host_bytes_to_build(total), available_memory_bytes()
    return EnginePlan(trt, builder, need, *host, warnings=() if warning is None else (warning,))


def announce(plan: EnginePlan) -> None:
    """Say what the build takes of this machine's memory; a warning where that is more than is free."""
    needed, free = plan.host_bytes, plan.host_available
    if free is not None and needed > free:
        _log.warning(
            "building needs about %.1f GiB of RAM, %.1f GiB are free: it may run out of memory",
            needed / (1 << 30),
            free / (1 << 30),
        )
    else:
        _log.log(NOTICE, "building needs about %.1f GiB of RAM", needed / (1 << 30))


def why_not_run(profile: Profile) -> str | None:
    """Why this machine cannot run an engine of the profile; None where it can."""
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
    need = plan.gpu_need
    require_free_space(writer.folder, need.weights + need.streamed_weights, "the engine")
    network = Network(plan.trt, writer.folder / graph_engine.file)
    with (
        progress_bar("building engine", PROGRESS_STEPS, "it") as advance,
        writer.open_hashed(ENGINE_FILE) as sink,
    ):
        network.build(options, sink, advance)
    info = TensorRTInfo(
        builder="rtx" if plan.builder == "rtx" else "tensorrt",
        builder_version=str(plan.trt.__version__),
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
