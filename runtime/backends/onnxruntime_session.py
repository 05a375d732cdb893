"""Opening the graphs of an engine in ONNX Runtime, and running them over a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from q2export.contracts.step import LOGITS, PAST, STEP_INPUTS, cache_names, tensor_named
from q2export.errors import PackageError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.onnxruntime_ops import register_ops
from q2export.runtime.cpu import processors
from q2export.runtime.onnxruntime_import import import_onnxruntime
from q2export.strict.json import shown

if TYPE_CHECKING:
    import onnxruntime

    from q2export.runtime.backends.onnxruntime import OnnxRuntimeCache

CACHE_ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""Values of ``TensorProto.DataType``, which bindings take where NumPy has no such type."""

_WARNING_SEVERITY = 3  # errors only: ORT warns of every name it meets twice


def open_session(
    model: Path | bytes,
    *,
    threads: int = 0,
    weights_folder: Path | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file with its weights mapped from disk.

    Args:
        model: path of the file, or its bytes.
        threads: CPU threads, of which no more than processors are used; 0 is one per core.
        weights_folder: for bytes, the folder that external data are relative to.
        profile: start of the path of a file for ONNX Runtime's profiler; None does not profile.

    Raises:
        PackageError: ONNX Runtime refuses the file; its own message is part of ours.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = min(threads, processors())
    options.log_severity_level = _WARNING_SEVERITY
    # The lowering has already chosen every op. What is left for ORT's own passes is constant folding, which
    # would copy weights, and fusions that would only cost time at each load.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Planning which buffers to reuse takes time quadratic in the nodes: 4 s for 8 layers of 60 experts. The
    # arena, where buffers go after their last use, reuses them as well.
    options.enable_mem_reuse = False
    # Our kernels read weights where they are mapped; ONNX Runtime's own would copy those they multiply.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if isinstance(model, bytes) and weights_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights_folder)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        register_ops(options, model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class
        name = "the model" if isinstance(model, bytes) else str(model)
        raise PackageError(f"ONNX Runtime {ort.__version__} cannot load {name}: {error}") from error


def check_signature(session: onnxruntime.InferenceSession, name: Path, engine: EngineInfo) -> None:
    """Refuse a graph whose inputs and outputs are not those of the manifest.

    Args:
        session: of the graph.
        name: of the file, for messages.
        engine: from the manifest.

    Raises:
        PackageError: naming the first, and both sides.
    """
    for kind, tensors, values in (
        ("input", engine.signature.inputs, session.get_inputs()),
        ("output", engine.signature.outputs, session.get_outputs()),
    ):
        expected = {one.name: _shown(one.dtype, one.shape) for one in tensors}
        found = {one.name: _found(one) for one in values}
        for tensor in sorted(expected.keys() | found.keys()):
            if expected.get(tensor) != found.get(tensor):
                raise PackageError(
                    f"{name}: {kind} {shown(tensor)}: the manifest says "
                    f"{expected.get(tensor, 'there is none')}, the graph {found.get(tensor, 'has none')}; "
                    "rebuild the package"
                )


class GraphSession:
    """The graph of an engine: it appends tokens to a cache and gives logits.

    Args:
        session: see :func:`open_session`.
        name: of the file, for messages.
        engine: from the manifest.

    Raises:
        PackageError: inputs or outputs are not those of the manifest; names the first, and both sides.
    """

    def __init__(self, session: onnxruntime.InferenceSession, name: Path, engine: EngineInfo) -> None:
        self._session = session
        self._name = name
        self._layers = engine.num_hidden_layers
        self._cache_type = int(CACHE_ELEMENT_TYPES[engine.kv_dtype])
        check_signature(session, name, engine)

    def run(
        self, cache: OnnxRuntimeCache, first_row: int, step: Sequence[Int64Array], logits: Float32Array
    ) -> None:
        """Append the tokens of ``step`` to rows of the cache that lie together, in place.

        Args:
            cache: of the engine.
            first_row: of the step in the cache.
            step: ``input_ids``, ``past_lengths``, ``query_lengths`` and ``logits_indices`` of these rows.
            logits: written, ``[rows, n, vocab]``.

        Raises:
            PackageError: ONNX Runtime gives up: too little memory, or a graph that contradicts itself.
        """
        rows = first_row, first_row + len(logits)
        binding = cache.bindings.get(rows)
        if binding is None:
            binding = cache.bindings[rows] = self._bind_cache(cache, *rows)
        arrays = [np.ascontiguousarray(array, dtype=np.int64) for array in step]
        for tensor, array in zip(STEP_INPUTS, arrays, strict=True):
            binding.bind_input(tensor.name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output(LOGITS.name, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ORT's exceptions share no base class
            raise PackageError(f"{self._name}: ONNX Runtime cannot run the graph: {error}") from error

    def end_profiling(self) -> Path:
        """Write what the profiler has recorded; only of a session opened with ``profile``."""
        return Path(self._session.end_profiling())

    def _bind_cache(self, cache: OnnxRuntimeCache, first: int, end: int) -> Any:
        """Bind some rows of every layer's cache, as input and output of the same memory."""
        binding = self._session.io_binding()
        for names in cache_names(self._layers):
            part = cache.data[names.layer, names.index, first:end]
            address = part.ctypes.data
            binding.bind_input(names.past, "cpu", 0, self._cache_type, part.shape, address)
            binding.bind_output(names.present, "cpu", 0, self._cache_type, part.shape, address)
        return binding


def run_step(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feed: Mapping[str, npt.NDArray[Any]],
    kv_dtype: str,
) -> list[npt.NDArray[Any]]:
    """Run a graph once.

    Args:
        session: of the graph.
        outputs: names of those that are wanted, all of types that NumPy has.
        feed: inputs by name. NumPy has no bfloat16: caches of that type are given as float32.
        kv_dtype: of the caches.
    """
    ort = import_onnxruntime()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    if kv_dtype == "bfloat16":
        make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
        for name in values:
            if tensor_named(name) in PAST:
                upper = (np.ascontiguousarray(feed[name]).view(np.uint32) >> 16).astype(np.uint16)
                values[name] = make(upper, CACHE_ELEMENT_TYPES[kv_dtype])
    return [value.numpy() for value in session.run_with_ort_values(list(outputs), values)]


def _shown(dtype: str, shape: Sequence[str | int | None]) -> str:
    """``float32[*, 2, *, 64]``; ``*`` for a size that changes."""
    return f"{dtype}[{', '.join(str(size) if isinstance(size, int) else '*' for size in shape)}]"


def _found(value: onnxruntime.NodeArg) -> str:
    """The same of an input or output of a session, whose type is ``tensor(float)``."""
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return _shown({"float": "float32"}.get(name, name), value.shape)
