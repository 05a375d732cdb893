"""What is known of an engine for a GPU before it is built, whatever will run it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q2export.contracts.profile import Profile
from q2export.contracts.progress import NOTICE
from q2export.pipeline.fitting import check_gpu_memory, check_tensor_sizes, narrower_weights
from q2export.pipeline.memory import GpuNeed, budget

if TYPE_CHECKING:
    from q2export.exporter.weights.plan import WeightPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GpuPlan:
    """An engine for a GPU.

    Attributes:
        builder: what makes it: ``tensorrt``, ``rtx`` or ``onnxruntime``. builder_version: of that library;
            None where it need not be installed here.
        need: memory on the GPU.
        warnings: of the engine, one sentence each.
        host_bytes: RAM of this machine the build takes at its peak; None where it is little.
        host_available: RAM of this machine that is free; None where that is not known.
    """

    builder: str
    builder_version: str | None
    need: GpuNeed
    warnings: tuple[str, ...] = ()
    host_bytes: int | None = None
    host_available: int | None = None

    def describe(self) -> dict[str, Any]:
        """Plain data for ``build --dry-run``."""
        need = self.need
        return {
            "builder": self.builder,
            "builder_version": self.builder_version,
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

    def announce(self) -> None:
        """Say what the build takes of this machine's memory; a warning where that is more than is free."""
        needed, free = self.host_bytes, self.host_available
        if needed is None:
            return
        if free is not None and needed > free:
            _log.warning(
                "building needs about %.1f GiB of RAM, %.1f GiB are free: it may run out of memory",
                needed / (1 << 30),
                free / (1 << 30),
            )
        else:
            _log.log(NOTICE, "building needs about %.1f GiB of RAM", needed / (1 << 30))


def gpu_need(weights: WeightPlan, profile: Profile, dtype: str) -> GpuNeed:
    """Check that a model fits the GPU of a profile, from headers alone.

    Args:
        weights: of the model.
        profile: what to build for, fit to the model.
        dtype: of the graph.

    Raises:
        ProfileError: it does not fit; names what would.
    """
    from q2export.exporter.weights.sizes import planned_bytes

    check_tensor_sizes(weights.config, profile)
    total = planned_bytes(weights, profile.target, dtype).total
    wanted = budget(weights.config, dtype, total, profile)
    return check_gpu_memory(wanted, profile, narrower_weights(weights, profile, dtype))


def plan_onnxruntime(weights: WeightPlan, profile: Profile, dtype: str, *, chosen: bool) -> GpuPlan:
    """Check that an engine for ONNX Runtime on CUDA fits the GPU of a profile; arguments as in
    :func:`gpu_need`.

    Args:
        chosen: whether the builder ``auto`` chose ONNX Runtime.

    Raises:
        ProfileError: it does not fit; names what would.
    """
    gpu = f"{profile.gpu or profile.name} (compute capability {profile.compute_capability})"
    warning = (
        f"no TensorRT here both builds for {gpu} and lists it as supported, so the engine is one for ONNX "
        "Runtime on CUDA; the builders tensorrt and rtx, asked for by name, say what stands against each"
    )
    return GpuPlan(
        builder="onnxruntime",
        builder_version=None,
        need=gpu_need(weights, profile, dtype),
        warnings=(warning,) if chosen else (),
    )
