"""Ranges of the dynamic sizes an engine is built for; shared by profiles, manifests and engine builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q2export.contracts.step import BATCH, CAPACITY, SEQUENCE, WANTED
from q2export.errors import ProfileError

PREFILL, DECODE = 0, 1
"""Index of the two optimization profiles of a TensorRT engine."""


@dataclass(frozen=True)
class Range:
    """Smallest, expected and largest value of a dynamic dimension; the engine is tuned for ``opt``."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ProfileError(
                f"a range needs 1 <= min <= opt <= max, found min {self.min}, opt {self.opt}, max {self.max}"
            )

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max


@dataclass(frozen=True)
class StepRanges:
    """Sizes one optimization profile of a TensorRT engine takes, per step.

    Attributes:
        batch: sequences.
        sequence: new tokens per sequence, padding included.
        logits: positions per sequence whose logits are returned; at least one is always computed.
        capacity: tokens per sequence the KV cache has room for.
    """

    batch: Range
    sequence: Range
    logits: Range
    capacity: Range

    def shapes(self, shape: Sequence[str | int]) -> tuple[tuple[int, ...], ...]:
        """Smallest, expected and largest shape of a graph input.

        Args:
            shape: sizes, and names of :data:`q2export.contracts.step.DYNAMIC`.
        """
        ranges = {BATCH: self.batch, SEQUENCE: self.sequence, WANTED: self.logits, CAPACITY: self.capacity}
        return tuple(
            tuple(size if isinstance(size, int) else getattr(ranges[size], bound) for size in shape)
            for bound in ("min", "opt", "max")
        )
