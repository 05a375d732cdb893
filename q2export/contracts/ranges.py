"""Ranges of the dynamic sizes an engine is built for; shared by profiles, manifests and engine builders."""

from __future__ import annotations

from dataclasses import dataclass

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

    def shapes(self, num_key_value_heads: int, head_dim: int) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Smallest, expected and largest shape of every kind of graph input.

        Returns:
            ``(min, opt, max)`` by input name; the caches of all layers share ``past_key`` and ``past_value``.
        """

        def three(*dims: Range | int) -> tuple[tuple[int, ...], ...]:
            return tuple(
                tuple(dim if isinstance(dim, int) else getattr(dim, bound) for dim in dims)
                for bound in ("min", "opt", "max")
            )

        cache = three(self.batch, num_key_value_heads, self.capacity, head_dim)
        lengths = three(self.batch)
        return {
            "input_ids": three(self.batch, self.sequence),
            "past_lengths": lengths,
            "query_lengths": lengths,
            "logits_indices": three(self.batch, self.logits),
            "past_key": cache,
            "past_value": cache,
        }
