"""ONNX Runtime on the CPU: mapped weights, and a KV cache that is updated in place.

An engine is one graph, and may have a second one for prefill: it fills the cache with many tokens faster,
with int8 copies of the weights, and gives no logits. The last token of a prompt goes through the first graph.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from q2export.contracts.step import cache_names
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.onnxruntime_session import GraphSession, open_session
from q2export.runtime.cpu import has_exact_int8_matmuls

_log = logging.getLogger(__name__)

PREFILL_FROM = 32
"""Tokens of a step from which on the prefill graph is used: below, the two graphs are about equally fast."""


class OnnxRuntimeCache:
    """Keys and values of some sequences: one array ``[layers, 2, batch, heads, capacity, head_dim]``.

    Pages of the array are only touched as tokens are appended.
    """

    def __init__(self, engine: EngineInfo, batch: int, capacity: int) -> None:
        shape = (engine.num_hidden_layers, 2, batch, engine.num_key_value_heads, capacity, engine.head_dim)
        self.data = np.zeros(shape, dtype=np.float32)
        self.bindings: dict[tuple[int, int, int], Any] = {}

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.data.shape[2])

    @property
    def capacity(self) -> int:
        """Tokens each sequence can hold."""
        return int(self.data.shape[4])

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of row ``source`` over row ``target``."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]


class OnnxRuntimeBackend:
    """A :class:`~q2export.runtime.backends.base.Backend` over ONNX Runtime sessions."""

    def __init__(
        self,
        folder: Path,
        engine: EngineInfo,
        *,
        threads: int = 0,
        prepack: bool = False,
        prefill: bool = True,
        prefill_from: int = PREFILL_FROM,
        profile: Path | None = None,
    ) -> None:
        """Load the engine of a package.

        Args:
            folder: the package.
            engine: from its manifest.
            threads: CPU threads; 0 is one per core.
            prepack: see :func:`~q2export.runtime.backends.onnxruntime_session.open_session`.
            prefill: use the prefill graph, if the engine has one.
            prefill_from: tokens of a step from which on it is used.
            profile: start of the path of the files of ONNX Runtime's profiler; None does not profile.

        Raises:
            PackageError: a graph cannot be loaded, or is not of the engine the manifest describes.
        """
        self._engine = engine
        self._prefill_from = prefill_from
        files = [engine.file]
        if prefill and engine.prefill_file is not None:
            if has_exact_int8_matmuls():
                files.append(engine.prefill_file)
            else:
                _log.warning(
                    "%s is not used: int8 matmuls are not exact on this processor", engine.prefill_file
                )
        self._graphs = [
            GraphSession(
                open_session(
                    folder / file,
                    threads=threads,
                    prepack=prepack or number > 0,  # int8 matmuls of mapped weights are slower than none
                    stop_spinning=number > 0,
                    profile=None if profile is None else profile.with_name(f"{profile.name}-{number}"),
                ),
                folder / file,
                engine,
            )
            for number, file in enumerate(files)
        ]
        self.calls: list[int] | None = None if profile is None else []
        """Of an engine that is profiled, for every call which of its graphs it ran."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._engine.vocab_size

    @property
    def max_batch(self) -> int:
        """Largest batch of the profile."""
        return self._engine.max_batch

    @property
    def max_capacity(self) -> int:
        """Largest capacity of the profile, in tokens."""
        return self._engine.max_capacity

    @property
    def prefill_chunk(self) -> int:
        """Longest ``input_ids`` of one step, in tokens."""
        return self._engine.prefill_chunk

    def new_cache(self, batch: int, capacity: int) -> OnnxRuntimeCache:
        """Allocate an empty cache.

        Raises:
            GenerationError: ``batch`` or ``capacity`` is beyond what the engine was built for, or there is
                not enough memory.
        """
        if not 1 <= batch <= self.max_batch:
            raise GenerationError(
                f"batch {batch} is out of range: the engine was built for 1 to {self.max_batch}; "
                f"rebuild with batch.max={batch} or split the batch"
            )
        if not 1 <= capacity <= self.max_capacity:
            raise GenerationError(
                f"capacity of {capacity} tokens is out of range: the engine was built for 1 to "
                f"{self.max_capacity}; "
                f"rebuild with capacity.max={capacity} or shorten the request"
            )
        try:
            return OnnxRuntimeCache(self._engine, batch, capacity)
        except MemoryError as error:
            raise GenerationError(
                f"no memory for a cache of {batch} x {capacity} tokens ({error}); ask for fewer tokens"
            ) from None

    @property
    def has_prefill_graph(self) -> bool:
        """Whether long steps without logits, but for the last token's, go through a graph of their own."""
        return len(self._graphs) > 1

    def forward(
        self,
        cache: OnnxRuntimeCache,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
    ) -> Float32Array:
        """See :meth:`q2export.runtime.backends.base.Backend.forward`."""
        totals = past_lengths + query_lengths
        if totals.max() > cache.capacity:
            row = int(totals.argmax())
            raise GenerationError(
                f"row {row}: {past_lengths[row]} tokens cached and {query_lengths[row]} more exceed the "
                f"cache's capacity of {cache.capacity}"
            )
        # Padding is cut off below, so a position within it is answered by the row's last token.
        indices = np.minimum(logits_indices, query_lengths[:, None] - 1)
        if self._fills(query_lengths, indices):
            last = query_lengths - 1
            wanted = indices.shape[1]
            filled = last if wanted else query_lengths
            self._append(1, cache, (input_ids, past_lengths, filled), None)
            if wanted:
                input_ids = np.take_along_axis(input_ids, last[:, None], axis=1)
                past_lengths, query_lengths = past_lengths + last, np.ones_like(last)
                indices = np.zeros_like(indices)
            else:
                return np.empty((len(input_ids), 0, self.vocab_size), np.float32)
        logits = np.empty((*indices.shape, self.vocab_size), dtype=np.float32)
        self._append(0, cache, (input_ids, past_lengths, query_lengths, indices), logits)
        return logits

    def _fills(self, query_lengths: Int64Array, indices: Int64Array) -> bool:
        """Whether the prefill graph takes the step: it gives no logits, and no row may be left empty."""
        if not self.has_prefill_graph or query_lengths.max() < self._prefill_from:
            return False
        only_last = bool((indices == query_lengths[:, None] - 1).all())
        return only_last and (indices.shape[1] == 0 or int(query_lengths.min()) > 1)

    def _append(
        self, graph: int, cache: OnnxRuntimeCache, step: Sequence[Int64Array], logits: Float32Array | None
    ) -> None:
        """Run a graph over all rows, or over one after the other where its attention kernel wants that."""
        input_ids, past_lengths, query_lengths = step[:3]
        # The attention kernel takes several tokens on top of a past only one sequence at a time.
        rows = len(input_ids)
        one_by_one = rows > 1 and int(query_lengths.max()) > 1 and bool(past_lengths.any())
        for part in [slice(row, row + 1) for row in range(rows)] if one_by_one else [slice(0, rows)]:
            length = int(query_lengths[part].max())
            inputs = (input_ids[part, :length], *(array[part] for array in step[1:]))
            self._graphs[graph].run(cache, part, inputs, None if logits is None else logits[part])
            if self.calls is not None:
                self.calls.append(graph)

    def end_profiling(self) -> list[Path]:
        """Write what the profiler has recorded, a file per graph; only of one opened with ``profile``."""
        return [graph.end_profiling() for graph in self._graphs]


def step_inputs(
    engine: EngineInfo, tokens: Sequence[int], positions: Int64Array
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of one step over ``tokens`` from an empty cache, asking for the logits at ``positions``.

    NumPy has no bfloat16: caches of that type are returned as float32.
    """
    length = len(tokens)
    shape = (1, engine.num_key_value_heads, length, engine.head_dim)
    dtype = np.float16 if engine.kv_dtype == "float16" else np.float32
    caches = {names.past: np.zeros(shape, dtype=dtype) for names in cache_names(engine.num_hidden_layers)}
    return {
        "input_ids": np.array([tokens], dtype=np.int64),
        "past_lengths": np.zeros(1, dtype=np.int64),
        "query_lengths": np.array([length], dtype=np.int64),
        "logits_indices": positions[None],
        **caches,
    }
