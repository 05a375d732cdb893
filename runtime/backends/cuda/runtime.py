"""The few calls of the CUDA runtime that the session makes, with errors that say which call failed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from q2export.errors import GenerationError, MissingDependencyError, PackageError


@dataclass(frozen=True)
class Device:
    """A GPU: its name, compute capability, ``"8.0"``, and number in this process."""

    name: str
    compute_capability: str
    index: int = 0


class Cuda(Protocol):
    """What the session needs of CUDA. Addresses, streams and graphs are integers.

    Every method raises GenerationError if CUDA refuses.
    """

    def select(self, compute_capability: str | None) -> Device:
        """Choose the GPU that everything else is about, before anything else is called.

        The thread's current GPU, or the first of the compute capability where that one is of another; None
        takes any.
        """

    def selected(self) -> AbstractContextManager[None]:
        """A context in which the chosen GPU is the thread's current one; afterwards it is the one before.

        CUDA keeps a current GPU for each thread, and other libraries change it: all else is called in here.
        """

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that nobody uses."""

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes, aligned to at least 256."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def allocate_host(self, size: int) -> int:
        """Pinned host memory of ``size`` bytes."""

    def free_host(self, address: int) -> None:
        """Free pinned host memory."""

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""

    def synchronize(self, stream: int) -> None:
        """Wait until all work of a stream is done."""

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy from pinned host memory to the device."""

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy from the device to pinned host memory."""

    def copy_strided(
        self, target: int, source: int, pitch: int, width: int, height: int, stream: int
    ) -> None:
        """Copy ``height`` pieces of ``width`` bytes, ``pitch`` apart on both sides, within the device."""

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        """Record what ``enqueue`` puts on the stream, without running it, as a graph."""

    def launch(self, graph: int, stream: int) -> None:
        """Run a graph."""

    def destroy_graph(self, graph: int) -> None:
        """Free a graph."""


class CudaRuntime:
    """:class:`Cuda` over ``cuda.bindings.runtime``."""

    def __init__(self) -> None:
        """Find a GPU.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            PackageError: there is no usable GPU.
        """
        try:
            self._api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingDependencyError(
                f"running an engine on a GPU needs cuda-bindings, which cannot be imported ({error}); "
                "install it with: pip install cuda-bindings"
            ) from error
        status, count = self._api.cudaGetDeviceCount()
        if status != self._api.cudaError_t.cudaSuccess or not count:
            raise PackageError(
                f"no NVIDIA GPU can be used here ({self._describe(status)}); running an engine for "
                "GPUs needs one and its driver, building one does not"
            )
        self._index = 0  # until one is selected

    def select(self, compute_capability: str | None) -> Device:
        """See :meth:`Cuda.select`."""
        current = int(self._call("cudaGetDevice"))
        count = int(self._call("cudaGetDeviceCount"))
        found = {current: self._device(current)}
        for index in range(count):
            if compute_capability in (None, found[current].compute_capability):
                break
            found[index] = self._device(index)
            if found[index].compute_capability == compute_capability:
                current = index
        self._index = current
        return found[current]

    @contextmanager
    def selected(self) -> Iterator[None]:
        """See :meth:`Cuda.selected`."""
        before = self._call("cudaGetDevice")
        if before == self._index:
            yield
            return
        self._call("cudaSetDevice", self._index)
        try:
            yield
        finally:
            self._call("cudaSetDevice", before)

    def _device(self, index: int) -> Device:
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name.split(b"\0")[0].decode(errors="replace")
        return Device(name, f"{properties.major}.{properties.minor}", index)

    def free_memory(self) -> int:
        """See :meth:`Cuda.free_memory`."""
        return int(self._call("cudaMemGetInfo"))  # and the total, which is left out

    def allocate(self, size: int) -> int:
        """See :meth:`Cuda.allocate`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """See :meth:`Cuda.free`."""
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """See :meth:`Cuda.allocate_host`."""
        return int(self._call("cudaMallocHost", size))

    def free_host(self, address: int) -> None:
        """See :meth:`Cuda.free_host`."""
        self._call("cudaFreeHost", address)

    def create_stream(self) -> int:
        """See :meth:`Cuda.create_stream`."""
        return int(self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def synchronize(self, stream: int) -> None:
        """See :meth:`Cuda.synchronize`."""
        self._call("cudaStreamSynchronize", stream)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        """See :meth:`Cuda.upload`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        """See :meth:`Cuda.download`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_strided(
        self, target: int, source: int, pitch: int, width: int, height: int, stream: int
    ) -> None:
        """See :meth:`Cuda.copy_strided`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, pitch, source, pitch, width, height, kind, stream)

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        """See :meth:`Cuda.capture`."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except GenerationError:
            self._api.cudaStreamEndCapture(stream)  # leaves capture mode; the error above is the one to tell
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """See :meth:`Cuda.launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See :meth:`Cuda.destroy_graph`."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the runtime; its functions return a status and results, of which the first is taken."""
        status, *results = getattr(self._api, name)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            sizes = f" of {arguments[0]:,} bytes" if name in ("cudaMalloc", "cudaMallocHost") else ""
            raise GenerationError(f"CUDA: {name}{sizes} failed with {self._describe(status)}")
        return results[0] if results else None

    def _describe(self, status: Any) -> str:
        return str(getattr(status, "name", status))
