"""Which profile of an engine a step runs in, and how a step too large for it is cut.

An engine has a profile for prefill and one for decode; of TensorRT, an optimization profile whose shapes are
read from the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from q2export.contracts.step import INPUT_IDS, LOGITS_INDICES, PAST, tensor_named
from q2export.errors import GenerationError, PackageError
from q2export.runtime.backends.base import Float32Array, Int64Array

Shape = Sequence[int]


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest size of a dimension."""

    min: int
    max: int

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def both(self, other: Bounds) -> Bounds:
        """What both allow; empty (``min > max``) where they exclude each other."""
        return Bounds(max(self.min, other.min), min(self.max, other.max))


@dataclass(frozen=True)
class StepProfile:
    """The steps one optimization profile takes.

    Attributes:
        index: of the profile in the engine.
        rows: sequences. sequence: width of ``input_ids``, in tokens. logits: positions asked for per row.
        capacity: of the KV cache, in tokens.
    """

    index: int
    rows: Bounds
    sequence: Bounds
    logits: Bounds
    capacity: Bounds

    def narrowed(self, chunk: int) -> StepProfile:
        """The same for steps of at most ``chunk`` tokens, or of as few as the profile takes."""
        widest = max(self.sequence.min, min(self.sequence.max, chunk))
        most = max(self.logits.min, min(self.logits.max, widest))
        sequence, logits = Bounds(self.sequence.min, widest), Bounds(self.logits.min, most)
        return replace(self, sequence=sequence, logits=logits)


def read_profile(index: int, ranges: Mapping[str, tuple[Shape, Shape]]) -> StepProfile:
    """Read a profile from the smallest and the largest shape of every input of the engine.

    Args:
        index: of the profile.
        ranges: by input name; those of ``past_lengths``, ``query_lengths``, ``input_ids``,
            ``logits_indices`` and of every ``past_key.i`` and ``past_value.i``.

    Raises:
        PackageError: the inputs allow no common batch or capacity.
    """

    def bounds(name: str, axis: int) -> Bounds:
        smallest, largest = ranges[name]
        return Bounds(smallest[axis], largest[axis])

    def common(names: Iterable[str], axis: int, what: str) -> Bounds:
        result = Bounds(0, 1 << 62)
        for name in names:
            result = result.both(bounds(name, axis))
        if result.min > result.max:
            raise PackageError(f"optimization profile {index}: its inputs allow no common {what}")
        return result

    caches = [name for name in ranges if tensor_named(name) in PAST]
    return StepProfile(
        index,
        rows=common(ranges, 0, "batch"),
        sequence=bounds(INPUT_IDS.name, 1),
        logits=bounds(LOGITS_INDICES.name, 1),
        capacity=common(caches, 2, "capacity"),
    )


@dataclass(frozen=True)
class Step:
    """What one call of the engine reads besides the cache.

    Attributes:
        input_ids: ``[rows, sequence]``. past_lengths, query_lengths: ``[rows]``.
        logits_indices: ``[rows, n]``.
    """

    input_ids: Int64Array
    past_lengths: Int64Array
    query_lengths: Int64Array
    logits_indices: Int64Array


@dataclass(frozen=True)
class Window:
    """Columns ``start`` to ``stop`` of a step, run as one call.

    Attributes:
        profile: the one it runs in.
        sequence: width of the call, in tokens: ``stop - start``, padded to what the profile takes.
        logits: positions asked for per row, likewise padded.
        every_position: whether it is asked for all of its positions in order, because the step asks for more
            than one call can give.
    """

    profile: StepProfile
    start: int
    stop: int
    sequence: int
    logits: int
    every_position: bool

    def cut(self, step: Step) -> Step:
        """The inputs of this call.

        A row that has ended before ``start`` repeats its last token: that writes what the cache already
        holds, and no call has a row of zero tokens.
        """
        rows, width = step.input_ids.shape
        if (self.start, self.stop, self.sequence) == (0, width, width) and not self.every_position:
            return replace(step, logits_indices=self._indices(step, step.query_lengths))
        query = np.minimum(step.query_lengths, self.stop) - self.start
        ended = query <= 0
        first = np.where(ended, step.query_lengths - 1, self.start)
        query = np.maximum(query, 1)
        input_ids = np.zeros((rows, self.sequence), np.int64)
        for row in range(rows):
            input_ids[row, : query[row]] = step.input_ids[row, first[row] : first[row] + query[row]]
        return Step(input_ids, step.past_lengths + first, query, self._indices(step, query))

    def _indices(self, step: Step, query: Int64Array) -> Int64Array:
        last = (query - 1)[:, None]
        if self.every_position:
            return np.minimum(np.arange(self.logits)[None], last)
        indices = np.zeros((len(query), self.logits), np.int64)
        asked = step.logits_indices.shape[1]
        indices[:, :asked] = np.clip(step.logits_indices - self.start, 0, last)
        return indices

    def asked(self, step: Step) -> bool:
        """Whether the step wants any logits of this window."""
        indices = step.logits_indices
        return bool(((indices >= self.start) & (indices < self.stop)).any())

    def collect(self, step: Step, produced: Float32Array, logits: Float32Array) -> None:
        """Copy what the call ``produced`` into the ``logits`` of the whole step, where they lie in it.

        Args:
            step: the whole step.
            produced: ``[rows, self.logits, vocab]``.
            logits: ``[rows, n, vocab]``.
        """
        indices = step.logits_indices
        rows, columns = np.nonzero((indices >= self.start) & (indices < self.stop))
        source = indices[rows, columns] - self.start if self.every_position else columns
        logits[rows, columns] = produced[rows, source]


def plan_windows(
    profiles: Sequence[StepProfile], rows: int, width: int, asked: int, capacity: int
) -> tuple[Window, ...]:
    """Cut a step into calls that each fit a profile; most steps are one call.

    A step that fits several profiles takes the narrowest: one-token steps go to decode.

    Args:
        profiles: of the engine.
        rows: sequences. width: tokens of the longest. asked: logits wanted per row.
        capacity: of the cache.

    Raises:
        GenerationError: no profile takes that batch or capacity.
    """
    usable = [one for one in profiles if rows in one.rows and capacity in one.capacity]
    if not usable:
        taken = "; ".join(
            f"batch {one.rows.min} to {one.rows.max}, capacity {one.capacity.min} to {one.capacity.max}"
            for one in profiles
        )
        raise GenerationError(
            f"no optimization profile takes a batch of {rows} with a capacity of {capacity} tokens: {taken}"
        )
    widest = max(usable, key=lambda one: one.sequence.max)
    every_position = asked > widest.logits.max
    size = min(width, widest.sequence.max, widest.logits.max if every_position else width)
    windows = []
    for start in range(0, width, size):
        stop = min(start + size, width)
        wanted = stop - start if every_position else asked
        profile = _narrowest(usable, stop - start, wanted)
        sequence = max(stop - start, profile.sequence.min)
        logits = max(wanted, profile.logits.min)
        windows.append(Window(profile, start, stop, sequence, logits, every_position))
    return tuple(windows)


def _narrowest(profiles: Sequence[StepProfile], width: int, asked: int) -> StepProfile:
    fitting = [one for one in profiles if width <= one.sequence.max and asked <= one.logits.max]
    return min(fitting, key=lambda one: one.sequence.max)
