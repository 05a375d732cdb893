"""A TensorRT engine as a backend: two execution contexts, one stream, decode steps as CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from q2export.contracts.step import LOGITS
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.tensorrt.buffers import LOGIT_BYTES, Binding, InputLayout, KVLayout
from q2export.runtime.backends.tensorrt.compatibility import Found, check_compatible
from q2export.runtime.backends.tensorrt.contexts import is_capturable, make_contexts
from q2export.runtime.backends.tensorrt.cuda import Cuda, CudaRuntime
from q2export.runtime.backends.tensorrt.engine_file import LoadedEngine, load_engine
from q2export.runtime.backends.tensorrt.profiles import Step, Window, plan_windows
from q2export.runtime.backends.tensorrt.runtime_cache import RuntimeCache, runtime_cache_file
from q2export.runtime.backends.tensorrt.weight_streaming import limit_weights
from q2export.runtime.backends.tensorrt.workspace import (
    Mirror,
    TensorRTCache,
    Workspace,
    WorkspacePool,
    largest_workspace_bytes,
)


def open_backend(
    folder: Path, info: EngineInfo, built: TensorRTInfo, rebuild_command: str
) -> TensorRTBackend:
    """Load the engine of a package onto the GPU.

    Args:
        folder: the package.
        info: from its manifest.
        built: what the engine was built with.
        rebuild_command: for messages.

    Raises:
        MissingDependencyError: the library or cuda-bindings is not installed.
        PackageError: no GPU, another library version or GPU than the engine was built for, or the engine is
            not the one the manifest describes.
    """
    from q2export.plugins.tensorrt.loader import import_tensorrt
    from q2export.plugins.tensorrt.registry import register

    trt = import_tensorrt(built.builder)
    cuda = CudaRuntime()
    device = cuda.select(built.compute_capability)
    found = Found(trt.__version__, device.name, device.compute_capability)
    path = folder / info.file
    check_compatible(str(path), built, found, rebuild_command)
    register(trt)
    cache_file = runtime_cache_file(path, found.builder_version, found.gpu)
    with cuda.selected():
        loaded = load_engine(path, info, trt, built, found, rebuild_command)
        return TensorRTBackend(info, loaded, cuda, trt, cache_file)


class TensorRTBackend:
    """A :class:`~q2export.runtime.backends.base.Backend` over a TensorRT engine.

    One call of the engine runs at a time; threads that share the backend wait for each other.
    """

    def __init__(
        self,
        info: EngineInfo,
        loaded: LoadedEngine,
        cuda: Cuda,
        trt: ModuleType,
        cache_file: Path | None = None,
    ) -> None:
        """Make the execution contexts.

        Args:
            info: from the manifest.
            loaded: the engine.
            cuda: the GPU it is on, selected.
            trt: the library.
            cache_file: of the kernels that TensorRT-RTX compiles here; None keeps none.
        """
        self._info = info
        self._loaded = loaded
        self._cuda = cuda
        self._profiles = tuple(one.narrowed(info.prefill_chunk) for one in loaded.profiles)
        self._widest = max(one.sequence.max for one in self._profiles)
        self._stream = cuda.create_stream()
        largest = InputLayout(info.max_batch, self._widest, max(one.logits.max for one in self._profiles))
        # Before there are contexts: TensorRT takes no other budget afterwards.
        self._streams_weights = limit_weights(loaded.engine, cuda, largest_workspace_bytes(info, largest))
        contexts = make_contexts(loaded.engine, trt, cuda, self._stream, self._profiles, cache_file)
        self._contexts, self._cache = contexts.of_profile, contexts.cache
        arena = KVLayout.of(info, info.max_batch, info.max_capacity)
        self._pool = WorkspacePool(cuda, self._stream, arena, largest, info.vocab_size)
        memory = contexts.scratch, contexts.cache
        release = weakref.finalize(self, _release, cuda, self._stream, self._pool, *memory)
        release.atexit = False  # the driver may be gone by then, and frees everything itself

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._info.vocab_size

    @property
    def max_batch(self) -> int:
        """Largest batch of the engine."""
        return self._info.max_batch

    @property
    def max_capacity(self) -> int:
        """Largest capacity of the engine, in tokens."""
        return self._info.max_capacity

    @property
    def prefill_chunk(self) -> int:
        """Longest ``input_ids`` of one call, in tokens."""
        return self._widest

    def new_cache(self, batch: int, capacity: int) -> TensorRTCache:
        """Allocate an empty cache, on the GPU.

        Raises:
            GenerationError: ``batch`` or ``capacity`` is beyond what the engine was built for, or the GPU has
                too little memory left.
        """
        for name, size, largest in (
            ("batch", batch, self.max_batch),
            ("capacity", capacity, self.max_capacity),
        ):
            if not 1 <= size <= largest:
                raise GenerationError(
                    f"{name} {size} is out of range: the engine was built for 1 to {largest}; "
                    f"rebuild with {name}.max={size}, or ask for less"
                )
        smallest = max(one.capacity.min for one in self._profiles)
        return self._pool.cache(batch, max(capacity, smallest))

    def forward(
        self,
        cache: TensorRTCache,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
    ) -> Float32Array:
        """See :meth:`q2export.runtime.backends.base.Backend.forward`."""
        longest = int(query_lengths.max())
        rows, asked = logits_indices.shape
        # Padding is cut off, so a position within it is answered by the row's last token.
        indices = np.minimum(logits_indices, query_lengths[:, None] - 1)
        step = Step(input_ids[:, :longest], past_lengths, query_lengths, indices)
        windows = plan_windows(self._profiles, rows, longest, asked, cache.workspace.arena.layout.capacity)
        with self._pool.lock, self._cuda.selected():
            if len(windows) == 1 and windows[0].logits == asked and not windows[0].every_position:
                return self._run(cache.workspace, windows[0], windows[0].cut(step), True)
            logits = np.zeros((rows, asked, self.vocab_size), np.float32)
            for window in windows:
                wanted = window.asked(step)
                produced = self._run(cache.workspace, window, window.cut(step), wanted)
                if wanted:
                    window.collect(step, produced, logits)
            return logits

    def _run(self, workspace: Workspace, window: Window, step: Step, wanted: bool) -> Float32Array:
        """One call of the engine; the logits only if they are ``wanted``."""
        rows = len(step.input_ids)
        layout = InputLayout(rows, window.sequence, window.logits)
        logits = workspace.logits_for(rows, window.logits)
        workspace.write_inputs(layout, step)
        context = self._contexts[window.profile.index]

        def prepare() -> None:
            _bind(context, layout.bindings(), workspace.inputs.device)
            _bind(context, workspace.cache_bindings(rows), workspace.arena.address)
            context.set_tensor_address(LOGITS.name, logits.device)

        def enqueue() -> None:
            self._enqueue(context, workspace, layout, logits, wanted)

        # TensorRT copies streamed weights in ways that a graph cannot hold.
        if wanted and (window.sequence, window.logits) == (1, 1) and not self._streams_weights:
            captured = workspace.graphs.run(
                rows, prepare, enqueue, lambda: is_capturable(context, self._stream)
            )
            if captured and self._cache is not None:
                self._cache.save()  # all kernels of this shape are there
        else:
            prepare()
            enqueue()
        self._cuda.synchronize(self._stream)
        return workspace.read_logits(rows, window.logits)

    def _enqueue(
        self, context: Any, workspace: Workspace, layout: InputLayout, logits: Mirror, wanted: bool
    ) -> None:
        """Inputs to the GPU, the engine, logits back: all on the stream, nothing waits."""
        stream, inputs = self._stream, workspace.inputs
        self._cuda.upload(inputs.device, inputs.host, layout.bytes, stream)
        if not context.execute_async_v3(stream):
            raise GenerationError("the engine refused the step; its log says why")
        if wanted:
            size = layout.rows * layout.logits * self.vocab_size * LOGIT_BYTES
            self._cuda.download(logits.host, logits.device, size, stream)


def _bind(context: Any, bindings: Mapping[str, Binding], base: int) -> None:
    """Tell a context where its inputs and outputs lie, and the shapes of its inputs."""
    for name, binding in bindings.items():
        if not name.startswith("present_") and not context.set_input_shape(name, binding.shape):
            raise GenerationError(f"the engine refuses shape {list(binding.shape)} for {name}")
        if not context.set_tensor_address(name, base + binding.offset):
            raise GenerationError(f"the engine refuses the memory of {name}")


def _release(cuda: Cuda, stream: int, pool: WorkspacePool, scratch: int, cache: RuntimeCache | None) -> None:
    with cuda.selected():
        cuda.synchronize(stream)
        if cache is not None:
            cache.save()
        pool.clear()
        cuda.free(scratch)
