"""The stages, most valuable first, and the steps each consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from q2export.errors import Q2ExportError
from q2export.strict.suggest import nearest

if TYPE_CHECKING:
    from benchmarks.gpu.session import Session


class CampaignError(Q2ExportError):
    """A run is described wrongly, or cannot start here."""


@dataclass(frozen=True)
class Stage:
    """One stage, run by a process of its own.

    Attributes:
        name: of the module in ``stages/``, whose function ``run`` it is.
        what: it finds out, for the summary.
        limit: seconds it may take, below nine minutes.
        least: seconds below which it is not worth starting.
    """

    name: str
    what: str
    limit: int
    least: int

    def load(self) -> Callable[[Session], None]:
        """Import the function that runs it."""
        return cast("Callable[[Session], None]", import_module(f"benchmarks.gpu.stages.{self.name}").run)


STAGES = (
    Stage("probe", "what the machine is; all kernels compiled; copy and matrix rates", 180, 60),
    Stage("accuracy", "the tests of the kernels on the GPU", 500, 60),
    Stage("engines", "ONNX Runtime engines of both trained checkpoints: verify, tokens", 300, 60),
    Stage("tensorrt", "whether TensorRT-RTX loads an engine on this GPU", 180, 45),
    Stage("kernels", "the kernels against copy bandwidth, matrix rate and PyTorch", 400, 60),
    Stage("decoder", "the 0.5B shape: decode and prefill against transformers, eager and compiled", 400, 120),
    Stage("hopper", "the three Hopper switches: tests and rates with each on", 500, 180),
    Stage("sanitizer", "compute-sanitizer: memcheck, racecheck", 480, 60),
    Stage("profiler", "Nsight Compute on two kernels", 180, 45),
)


def chosen(names: list[str]) -> list[Stage]:
    """The stages of these names, in their usual order; all where none is named.

    Raises:
        CampaignError: there is no such stage.
    """
    known = {stage.name: stage for stage in STAGES}
    for name in names:
        if name not in known:
            raise CampaignError(f"there is no stage {name!r}{nearest(name, known)}")
    return [stage for stage in STAGES if stage.name in names or not names]
