"""Which GPUs a builder can build for."""

from __future__ import annotations

import re
from types import ModuleType

from q2export.contracts.commands import install_command
from q2export.errors import ExportError
from q2export.plugins.tensorrt.loader import is_rtx

_MEMBER = re.compile(r"SM(\d+)(\d)")
_LISTED_BY_RTX = ("7.5", "8.6", "8.9", "12.")
"""Compute capabilities in the support matrices that NVIDIA publishes of TensorRT-RTX, up to 1.7."""

_NOT_IN_RTX = ("9.0", "10.0", "10.3")

TITLES = {True: "TensorRT-RTX", False: "TensorRT"}


def title(trt: ModuleType) -> str:
    """Name and version, ``"TensorRT-RTX 1.7.1.116"``."""
    return f"{TITLES[is_rtx(trt)]} {trt.__version__}"


def rtx_targets(trt: ModuleType) -> dict[str, object]:
    """Compute capability -> member of ``ComputeCapability``, for what TensorRT-RTX can build for."""
    found = {}
    for name, member in trt.ComputeCapability.__members__.items():
        if match := _MEMBER.fullmatch(name):
            found[f"{match[1]}.{match[2]}"] = member
    return found


def unlisted(trt: ModuleType, compute_capability: str) -> str | None:
    """A warning about GPUs that TensorRT-RTX builds for and does not list as supported; None for others."""
    if not is_rtx(trt) or compute_capability.startswith(_LISTED_BY_RTX):
        return None
    return (
        f"TensorRT-RTX builds for compute capability {compute_capability}, but lists no such GPU as "
        "supported: whether the engine runs is not known; the full TensorRT builds for it on such a machine"
    )


def check_target(trt: ModuleType, gpu: str, compute_capability: str, present: tuple[str, ...]) -> None:
    """Refuse a GPU this builder cannot build for.

    TensorRT-RTX builds for any GPU it knows, on any machine; the full TensorRT for the one in the machine.

    Args:
        trt: the builder, from ``import_tensorrt``.
        gpu: how the profile calls the GPU.
        compute_capability: of that GPU, ``"8.0"``.
        present: compute capabilities of the GPUs of this machine.

    Raises:
        ExportError: naming the builder, what it can build for, and what to install.
    """
    wanted = f"{gpu} (compute capability {compute_capability})"
    if is_rtx(trt):
        targets = rtx_targets(trt)
        if compute_capability not in targets:
            raise ExportError(
                f"{title(trt)} cannot build for {wanted}, only for {', '.join(targets)}; on a machine with "
                f"such a GPU, install the full TensorRT ({install_command('tensorrt')}, with NVIDIA's own "
                "package index) and build there with the builder tensorrt; or take the builder onnxruntime"
            )
    elif compute_capability not in present:
        found = ", ".join(present) or "no GPU"
        rtx = (
            f"the builder rtx ({install_command('rtx')}) or " if compute_capability not in _NOT_IN_RTX else ""
        )
        raise ExportError(
            f"{title(trt)} builds for the GPU in this machine ({found}), not for {wanted}; build on a "
            f"machine with such a GPU, or take {rtx}the builder onnxruntime"
        )
