"""Rows of weights through a quantizer to their place in the file, by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np

from q2export.contracts.progress import Advance
from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import TensorRef
from q2export.exporter.checkpoint.pack import Float32Array
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.packed_layout import PlacedTensor
from q2export.exporter.quantization.quantizer import Quantizer
from q2export.exporter.quantization.rows import as_matrix, read_rows
from q2export.exporter.quantization.statistics import RowErrors, WeightStatistics, WeightSums, row_errors
from q2export.exporter.quantization.writer import PackedWriter
from q2export.strict.json import shown

_COPIED_VALUES = 1 << 21
_KEPT_BYTES = 31 << 20
_LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class _Done:
    """What a worker did: bytes of the source, and by weight the sums over the rows from ``first_row`` on."""

    nbytes: int
    first_row: int = 0
    errors: Mapping[str, RowErrors] = field(default_factory=dict)


class Stream:
    """Hands pieces to the workers, a few ahead of what is done."""

    def __init__(
        self,
        refs: Mapping[str, TensorRef],
        quantizer: Quantizer,
        writer: PackedWriter,
        threads: int,
        advance: Advance,
    ) -> None:
        self._refs, self._quantizer, self._writer, self._advance = refs, quantizer, writer, advance
        _keep_freed_memory()
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = 2 * threads
        self._pending: deque[Future[_Done]] = deque()
        self._sums: dict[str, WeightSums] = {}
        self._statistics: dict[str, WeightStatistics] = {}

    def __enter__(self) -> Stream:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let the workers finish what they have begun."""
        self._pool.shutdown(cancel_futures=True)

    def quantize(self, group: Sequence[PackedWeight], chunk_values: int) -> None:
        """Quantize the weights of one group; those whose rows alternate in one tensor together."""
        if self._quantizer.in_order:
            self._wait_for(0)
        for _, alternating in groupby(group, key=lambda weight: weight.tensor):
            weights = tuple(alternating)
            for weight in weights:
                self._sums[weight.name] = WeightSums(weight, self._refs[weight.name].nbytes)
            rows, size = weights[0].shape
            step = max(1, chunk_values // (size * len(weights)))
            for first in range(0, rows, step):
                self._submit(partial(self._quantize, weights, first, min(step, rows - first)))

    def copy(self, tensors: Sequence[PlacedTensor]) -> None:
        """Copy tensors as they are, some rows at a time."""
        for tensor in tensors:
            rows, size = as_matrix(tensor.shape)
            step = max(1, _COPIED_VALUES // size)
            for first in range(0, rows, step):
                self._submit(partial(self._copy, tensor, first, min(step, rows - first)))

    def finish(self) -> dict[str, WeightStatistics]:
        """Wait for all; the statistics by name."""
        self._wait_for(0)
        return self._statistics

    def _submit(self, work: Callable[[], _Done]) -> None:
        self._pending.append(self._pool.submit(work))
        self._wait_for(self._ahead)

    def _wait_for(self, at_most: int) -> None:
        """Wait until ``at_most`` pieces are under way; an error of a worker is raised here."""
        while len(self._pending) > at_most:
            done = self._pending.popleft().result()
            self._advance(done.nbytes)
            for name, errors in done.errors.items():
                if self._sums[name].add(done.first_row, errors):
                    sums = self._sums.pop(name)
                    self._statistics[name] = sums.statistics(self._quantizer.method(sums.weight))

    def _quantize(self, weights: Sequence[PackedWeight], first_row: int, count: int) -> _Done:
        nbytes, parts, errors = 0, [], {}
        for weight in weights:
            part = read_rows(self._refs[weight.name], weight.shape, first_row, count)
            rows = part.float32()
            quantized = self._quantizer.quantize(weight, first_row, rows)
            _check_scales(self._refs[weight.name], first_row, quantized.scales)
            parts.append(quantized.packed(weight.scheme.bits))
            errors[weight.name] = row_errors(rows, quantized.dequantized(weight.scheme))
            nbytes += part.source_bytes
        self._writer.write_rows(weights, first_row, parts)
        return _Done(nbytes, first_row, errors)

    def _copy(self, tensor: PlacedTensor, first_row: int, count: int) -> _Done:
        shape = as_matrix(tensor.shape)
        part = read_rows(self._refs[tensor.name], shape, first_row, count)
        self._writer.write_plain(tensor.name, first_row * shape[1] * part.bits.itemsize, part.bits)
        return _Done(part.source_bytes)


def _check_scales(ref: TensorRef, first_row: int, scales: Float32Array) -> None:
    """Refuse values so large that their scale is beyond float16, in which scales are stored."""
    beyond = np.abs(scales) > _LARGEST_SCALE
    if beyond.any():
        row, block = (int(index[0]) for index in beyond.nonzero())
        raise CheckpointError(
            f"{ref.file}: tensor {shown(ref.name)}: row {first_row + row} needs a scale of "
            f"{float(abs(scales[row, block])):.6g}, and the largest that is stored is {_LARGEST_SCALE:g}; "
            f"keep the weight as it is: --keep {shown(ref.name)}"
        )


def _keep_freed_memory() -> None:
    """Let glibc keep buffers that are freed for the next piece.

    It returns those above a threshold to the system, whose page faults then take a quarter of the time; the
    threshold rises to the size of the largest block freed so far, up to 32 MiB (mallopt(3),
    M_MMAP_THRESHOLD).
    """
    np.empty(_KEPT_BYTES, np.uint8)
