"""ONNX Runtime on the CPU: mapped weights, and a KV cache that is updated in place."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from q2export.contracts.step import cache_names
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.lazy_pages import LazyPages
from q2export.runtime.backends.onnxruntime_session import GraphSession, open_session

_CACHE_TYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,  # of the same size: NumPy has no bfloat16, and nothing here looks at the values
}


class OnnxRuntimeCache:
    """Keys and values of some sequences: one array ``[layers, 2, batch, heads, capacity, head_dim]``.

    Pages of the array are only touched as tokens are appended.

    Args:
        engine: from the manifest.
        batch: rows.
        capacity: tokens of each.
        lazy: of small pages that :meth:`release_row` gives back, of which more may be asked for than there is
            memory; NumPy asks for pages of 2 MiB, in which a short sequence takes the memory of a long one.
    """

    def __init__(self, engine: EngineInfo, batch: int, capacity: int, *, lazy: bool = False) -> None:
        shape = (engine.num_hidden_layers, 2, batch, engine.num_key_value_heads, capacity, engine.head_dim)
        dtype = np.dtype(_CACHE_TYPES[engine.kv_dtype])
        self._pages = LazyPages(math.prod(shape) * dtype.itemsize) if lazy else None
        self.data: npt.NDArray[Any] = (
            np.zeros(shape, dtype)
            if self._pages is None
            else np.frombuffer(self._pages.memory, dtype, math.prod(shape)).reshape(shape)
        )
        self.bindings: dict[tuple[int, int], Any] = {}

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.data.shape[2])

    @property
    def capacity(self) -> int:
        """Tokens each sequence can hold."""
        return int(self.data.shape[4])

    @property
    def token_bytes(self) -> int:
        """Memory of one token of one row, in all layers."""
        return self.data.nbytes // (self.batch * self.capacity)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of row ``source`` over row ``target``."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]

    def release_row(self, row: int, length: int) -> None:
        """Give back the pages of the first ``length`` tokens of a row, if the cache is lazy."""
        if self._pages is None or length == 0:
            return
        layers, _, _, heads, capacity, head_dim = self.data.shape
        whole = capacity * head_dim * self.data.itemsize
        used = min(-(-length * whole // capacity // mmap.PAGESIZE) * mmap.PAGESIZE, whole)
        for part in range(2 * layers):
            first = (part * self.batch + row) * heads
            for head in range(first, first + heads):
                self._pages.release(head * whole, used)


class OnnxRuntimeBackend:
    """A :class:`~q2export.runtime.backends.base.Backend` over an ONNX Runtime session."""

    def __init__(
        self,
        folder: Path,
        engine: EngineInfo,
        *,
        threads: int = 0,
        graph: bytes | None = None,
        profile: Path | None = None,
    ) -> None:
        """Load the engine of a package.

        Args:
            folder: the package.
            engine: from its manifest.
            threads: CPU threads; 0 is one per core.
            graph: an ONNX file over the same weights to run instead of the engine's.
            profile: start of the path of the files of ONNX Runtime's profiler; None does not profile.

        Raises:
            PackageError: the graph cannot be loaded, or is not of the engine the manifest describes.
        """
        self._engine = engine
        path = folder / engine.file
        session = open_session(
            path if graph is None else graph, threads=threads, weights_folder=folder, profile=profile
        )
        self._graph = GraphSession(session, path, engine)
        self.calls = 0
        """Of the graph so far."""

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
        self._check_capacity(capacity)
        try:
            return OnnxRuntimeCache(self._engine, batch, capacity)
        except MemoryError as error:
            raise GenerationError(
                f"no memory for a cache of {batch} x {capacity} tokens ({error}); ask for fewer tokens"
            ) from None

    @property
    def arena_is_lazy(self) -> bool:
        """Pages are taken as tokens are appended."""
        return True

    def new_arena(self, rows: int, capacity: int) -> OnnxRuntimeCache:
        """Allocate a cache whose rows come and go.

        Raises:
            GenerationError: ``capacity`` is beyond what the engine was built for, or the system refuses so
                much address space.
        """
        self._check_capacity(capacity)
        try:
            return OnnxRuntimeCache(self._engine, rows, capacity, lazy=True)
        except (MemoryError, OSError) as error:
            raise GenerationError(
                f"no address space for {rows} rows of {capacity} tokens ({error}); ask for fewer rows or "
                "less capacity"
            ) from None

    def forward(
        self,
        cache: OnnxRuntimeCache,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
        first_row: int = 0,
    ) -> Float32Array:
        """See :meth:`q2export.runtime.backends.base.Backend.forward`."""
        totals = past_lengths + query_lengths
        if totals.max() > cache.capacity:
            row = int(totals.argmax())
            raise GenerationError(
                f"row {row}: {past_lengths[row]} tokens cached and {query_lengths[row]} more exceed the "
                f"cache's capacity of {cache.capacity}"
            )
        logits = np.empty((*logits_indices.shape, self.vocab_size), dtype=np.float32)
        self._graph.run(cache, first_row, (input_ids, past_lengths, query_lengths, logits_indices), logits)
        self.calls += 1
        return logits

    def _check_capacity(self, capacity: int) -> None:
        if not 1 <= capacity <= self.max_capacity:
            raise GenerationError(
                f"capacity of {capacity} tokens is out of range: the engine was built for 1 to "
                f"{self.max_capacity}; "
                f"rebuild with capacity.max={capacity} or shorten the request"
            )

    def end_profiling(self) -> Path:
        """Write what the profiler has recorded; only of one opened with ``profile``."""
        return self._graph.end_profiling()


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
