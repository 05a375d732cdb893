"""A TensorRT engine on a stream: an execution context per optimization profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.runtime.backends.cuda.backend import CudaBackend, largest_call
from q2export.runtime.backends.cuda.executor import DeviceTensor
from q2export.runtime.backends.cuda.runtime import Cuda, CudaRuntime
from q2export.runtime.backends.cuda.steps import StepProfile
from q2export.runtime.backends.cuda.workspace import largest_workspace_bytes
from q2export.runtime.backends.tensorrt.compatibility import Found, check_compatible
from q2export.runtime.backends.tensorrt.contexts import is_capturable, make_contexts
from q2export.runtime.backends.tensorrt.engine_file import LoadedEngine, load_engine
from q2export.runtime.backends.tensorrt.runtime_cache import runtime_cache_file
from q2export.runtime.backends.tensorrt.weight_streaming import limit_weights


def open_backend(folder: Path, info: EngineInfo, built: TensorRTInfo, rebuild_command: str) -> CudaBackend:
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
    from q2export.plugins.tensorrt.native import register_to_run

    trt = import_tensorrt(built.builder)
    cuda = CudaRuntime()
    device = cuda.select(built.compute_capability)
    found = Found(trt.__version__, device.name, device.compute_capability)
    path = folder / info.file
    check_compatible(str(path), built, found, rebuild_command)
    register_to_run(trt)
    cache_file = runtime_cache_file(path, found.builder_version, found.gpu)
    with cuda.selected():
        loaded = load_engine(path, info, trt, built, found, rebuild_command)
        return make_backend(info, loaded, cuda, trt, cache_file)


def make_backend(
    info: EngineInfo, loaded: LoadedEngine, cuda: Cuda, trt: ModuleType, cache_file: Path | None = None
) -> CudaBackend:
    """A backend over an engine.

    Args:
        info: from the manifest.
        loaded: the engine.
        cuda: the GPU it is on, selected.
        trt: the library.
        cache_file: of the kernels that TensorRT-RTX compiles here; None keeps none.
    """
    stream = cuda.create_stream()
    executor = TensorRTExecutor(info, loaded, cuda, trt, stream, cache_file)
    return CudaBackend(info, executor, cuda, stream)


class TensorRTExecutor:
    """An :class:`~q2export.runtime.backends.cuda.executor.Executor` over a TensorRT engine."""

    def __init__(
        self,
        info: EngineInfo,
        loaded: LoadedEngine,
        cuda: Cuda,
        trt: ModuleType,
        stream: int,
        cache_file: Path | None,
    ) -> None:
        """Make the execution contexts; arguments as in :func:`make_backend`."""
        self._loaded = loaded
        self._inputs = {tensor.name for tensor in info.signature.inputs}
        self._cuda = cuda
        self._stream = stream
        self._profiles = tuple(one.narrowed(info.prefill_chunk) for one in loaded.profiles)
        needed = largest_workspace_bytes(info, largest_call(info, self._profiles))
        # Before there are contexts: TensorRT takes no other budget afterwards.
        self._streams_weights = limit_weights(loaded.engine, cuda, needed)
        contexts = make_contexts(loaded.engine, trt, cuda, stream, self._profiles, cache_file)
        self._contexts, self._scratch, self._cache = contexts.of_profile, contexts.scratch, contexts.cache

    @property
    def profiles(self) -> Sequence[StepProfile]:
        """The optimization profiles."""
        return self._profiles

    @property
    def captures(self) -> bool:
        """Unless TensorRT copies weights from the host, in ways that a graph cannot hold."""
        return not self._streams_weights

    def bind(self, profile: int, tensors: Mapping[str, DeviceTensor]) -> None:
        """See :meth:`q2export.runtime.backends.cuda.executor.Executor.bind`."""
        context = self._contexts[profile]
        for name, tensor in tensors.items():
            if name in self._inputs and not context.set_input_shape(name, tensor.shape):
                raise GenerationError(f"the engine refuses shape {list(tensor.shape)} for {name}")
            if not context.set_tensor_address(name, tensor.address):
                raise GenerationError(f"the engine refuses the memory of {name}")

    def enqueue(self, profile: int) -> None:
        """See :meth:`q2export.runtime.backends.cuda.executor.Executor.enqueue`."""
        if not self._contexts[profile].execute_async_v3(self._stream):
            raise GenerationError("the engine refused the step; its log says why")

    def is_capturable(self, profile: int) -> bool:
        """Whether all kernels of the context are ready."""
        return is_capturable(self._contexts[profile], self._stream)

    def captured(self) -> None:
        """Keep the kernels that were compiled: all of this shape are there."""
        if self._cache is not None:
            self._cache.save()

    def release(self) -> None:
        """Keep what was compiled, and free the scratch memory."""
        if self._cache is not None:
            self._cache.save()
        self._cuda.free(self._scratch)
