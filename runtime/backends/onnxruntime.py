"""ONNX Runtime on the CPU: mapped weights, and a KV cache that is updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError, PackageError
from q2export.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array, Int64Array

if TYPE_CHECKING:
    import onnxruntime

_STEP_INPUTS = ("input_ids", "past_lengths", "query_lengths", "logits_indices")
_WARNING_SEVERITY = 3  # errors only: ORT warns of every name it meets twice


def open_session(
    model: Path | bytes,
    *,
    threads: int = 0,
    prepack: bool = False,
    weights_folder: Path | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file with its weights mapped from disk.

    Args:
        model: path of the file, or its bytes.
        threads: CPU threads; 0 is one per core.
        prepack: copy every matrix into memory in the layout the kernels like best. Decoding is then about a
            fifth faster (docs/performance.md), loading takes a second per 2 GB, and the copy takes as much
            memory as the weights; without it they are read where they are mapped.
        weights_folder: for bytes, the folder that external data are relative to.
        profile: start of the path of a file for ONNX Runtime's profiler; None does not profile.

    Raises:
        PackageError: ONNX Runtime refuses the file; its own message is part of ours.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _WARNING_SEVERITY
    # The lowering has already chosen every op. What is left for ORT's own passes is constant folding, which
    # would copy weights, and fusions that would only cost time at each load.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Planning which buffers to reuse takes time quadratic in the nodes: 4 s for 8 layers of 60 experts. The
    # arena, where buffers go after their last use, reuses them as well.
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if weights_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights_folder)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class
        name = "the model" if isinstance(model, bytes) else str(model)
        raise PackageError(f"ONNX Runtime {ort.__version__} cannot load {name}: {error}") from error


class OnnxRuntimeCache:
    """Keys and values of some sequences: one array ``[layers, 2, batch, heads, capacity, head_dim]``.

    Pages of the array are only touched as tokens are appended.
    """

    def __init__(self, engine: EngineInfo, batch: int, capacity: int) -> None:
        shape = (engine.num_hidden_layers, 2, batch, engine.num_key_value_heads, capacity, engine.head_dim)
        self.data = np.zeros(shape, dtype=np.float32)
        self.bindings: dict[tuple[int, int], Any] = {}

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
    """A :class:`~q2export.runtime.backends.base.Backend` over an ONNX Runtime session."""

    def __init__(
        self,
        folder: Path,
        engine: EngineInfo,
        *,
        threads: int = 0,
        prepack: bool = False,
        profile: Path | None = None,
    ) -> None:
        """Load the engine of a package.

        Args:
            folder: the package.
            engine: from its manifest.
            threads: CPU threads; 0 is one per core.
            prepack, profile: see :func:`open_session`.

        Raises:
            PackageError: the engine file cannot be loaded, or is not the engine the manifest describes.
        """
        self.calls = 0  # of ONNX Runtime
        self._engine = engine
        self._session = open_session(folder / engine.file, threads=threads, prepack=prepack, profile=profile)
        expected = {*_STEP_INPUTS, *_cache_names("past", engine.num_hidden_layers)}
        found = {value.name for value in self._session.get_inputs()}
        if found != expected:
            difference = ", ".join(sorted(found ^ expected)[:4])
            raise PackageError(
                f"{folder / engine.file}: its inputs are not those of the manifest: {difference}; rebuild it"
            )

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
            GenerationError: ``batch`` or ``capacity`` is beyond what the engine was built for.
        """
        if not 1 <= batch <= self.max_batch:
            raise GenerationError(
                f"batch {batch} is out of range: the engine was built for 1 to {self.max_batch}; "
                f"rebuild with --set batch.max={batch} or split the batch"
            )
        if not 1 <= capacity <= self.max_capacity:
            raise GenerationError(
                f"capacity of {capacity} tokens is out of range: the engine was built for 1 to "
                f"{self.max_capacity}; "
                f"rebuild with --set capacity.max={capacity} or shorten the request"
            )
        return OnnxRuntimeCache(self._engine, batch, capacity)

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
        longest = int(query_lengths.max())
        ids = input_ids[:, :longest]
        logits = np.empty((*logits_indices.shape, self.vocab_size), dtype=np.float32)
        # Padding is cut off below, so a position within it is answered by the row's last token.
        indices = np.minimum(logits_indices, query_lengths[:, None] - 1)
        # The attention kernel takes several tokens on top of a past only one sequence at a time.
        rows = len(input_ids)
        one_by_one = rows > 1 and longest > 1 and bool(past_lengths.any())
        parts = [slice(row, row + 1) for row in range(rows)] if one_by_one else [slice(0, rows)]
        for part in parts:
            length = int(query_lengths[part].max())
            step = (ids[part, :length], past_lengths[part], query_lengths[part], indices[part])
            self._run(cache, part, step, logits[part])
        return logits

    def _run(
        self, cache: OnnxRuntimeCache, rows: slice, step: Sequence[Int64Array], logits: Float32Array
    ) -> None:
        key = (rows.start, rows.stop)
        binding = cache.bindings.get(key)
        if binding is None:
            binding = cache.bindings[key] = self._bind_cache(cache, rows)
        arrays = [np.ascontiguousarray(array, dtype=np.int64) for array in step]
        for name, array in zip(_STEP_INPUTS, arrays, strict=True):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        self.calls += 1

    def end_profiling(self) -> Path:
        """Write what the profiler has recorded; only of a backend opened with ``profile``."""
        return Path(self._session.end_profiling())

    def _bind_cache(self, cache: OnnxRuntimeCache, rows: slice) -> Any:
        """Bind every layer's cache rows, as input and output of the same memory."""
        binding = self._session.io_binding()
        for layer in range(self._engine.num_hidden_layers):
            for index, kind in enumerate(("key", "value")):
                part = cache.data[layer, index, rows]
                address = part.ctypes.data
                binding.bind_input(f"past_{kind}.{layer}", "cpu", 0, np.float32, part.shape, address)
                binding.bind_output(f"present_{kind}.{layer}", "cpu", 0, np.float32, part.shape, address)
        return binding


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}_{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]


def step_inputs(
    engine: EngineInfo, tokens: Sequence[int], positions: Int64Array
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of one step over ``tokens`` from an empty cache, asking for the logits at ``positions``.

    NumPy has no bfloat16: caches of that type are returned as float32.
    """
    length = len(tokens)
    shape = (1, engine.num_key_value_heads, length, engine.head_dim)
    dtype = np.float16 if engine.kv_dtype == "float16" else np.float32
    caches = {name: np.zeros(shape, dtype=dtype) for name in _cache_names("past", engine.num_hidden_layers)}
    return {
        "input_ids": np.array([tokens], dtype=np.int64),
        "past_lengths": np.zeros(1, dtype=np.int64),
        "query_lengths": np.array([length], dtype=np.int64),
        "logits_indices": positions[None],
        **caches,
    }
