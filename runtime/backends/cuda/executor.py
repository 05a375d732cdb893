"""What a library owes the CUDA backend: one engine, run over memory it is given, on one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from q2export.runtime.backends.cuda.steps import StepProfile


@dataclass(frozen=True)
class DeviceTensor:
    """An input or output of a call: its address on the GPU, and its shape."""

    address: int
    shape: tuple[int, ...]


class Executor(Protocol):
    """Runs the calls of one engine. Only one thread calls it at a time, with the GPU selected."""

    @property
    def profiles(self) -> Sequence[StepProfile]:
        """The calls it takes, by the ``index`` of each; a call is one of them."""

    @property
    def captures(self) -> bool:
        """Whether a decode step can be part of a CUDA graph at all."""

    def bind(self, profile: int, tensors: Mapping[str, DeviceTensor]) -> None:
        """Say where every input and output of the next calls in a profile lies.

        Raises:
            GenerationError: the engine refuses a shape or an address.
        """

    def enqueue(self, profile: int) -> None:
        """Put one call over what was bound on the stream; it neither waits nor allocates after the first.

        Raises:
            GenerationError: the engine refuses the call.
        """

    def is_capturable(self, profile: int) -> bool:
        """Whether its next call can be captured, in its present state."""

    def captured(self) -> None:
        """A decode step was captured: all that it needs is there."""

    def release(self) -> None:
        """Free what it holds; the stream is idle, the GPU selected."""
