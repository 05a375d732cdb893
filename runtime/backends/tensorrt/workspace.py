"""The memory one cache works in: KV arena, input block, logits; on the device, and pinned on the host."""

from __future__ import annotations

import ctypes
import threading
import weakref

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array
from q2export.runtime.backends.tensorrt.buffers import InputLayout, KVLayout, logits_bytes
from q2export.runtime.backends.tensorrt.cuda import Cuda
from q2export.runtime.backends.tensorrt.graphs import DecodeGraphs
from q2export.runtime.backends.tensorrt.profiles import Step


class Mirror:
    """Device memory and pinned host memory of the same size."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        self.device = cuda.allocate(size)
        try:
            self.host = cuda.allocate_host(size)
        except GenerationError:
            cuda.free(self.device)
            raise

    def array(self, offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """The host memory at ``offset`` as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_byte * size).from_address(self.host + offset)
        return np.frombuffer(memoryview(memory), dtype=np.dtype(dtype)).reshape(shape)

    def free(self) -> None:
        """Free both."""
        self._cuda.free(self.device)
        self._cuda.free_host(self.host)


class Workspace:
    """All memory of one cache, and the graphs captured over it.

    Raises:
        GenerationError: the GPU has too little memory left.
    """

    def __init__(
        self, cuda: Cuda, stream: int, layout: KVLayout, inputs: InputLayout, vocab_size: int
    ) -> None:
        """Allocate.

        Args:
            cuda: the GPU.
            stream: that all work goes to.
            layout: of the arena.
            inputs: of the largest call.
            vocab_size: width of the logits.
        """
        self._cuda = cuda
        self._vocab_size = vocab_size
        self.layout = layout
        self.graphs = DecodeGraphs(cuda, stream)
        self.arena = cuda.allocate(layout.bytes)
        self._mirrors: list[Mirror] = []
        try:
            self.inputs = self._mirror(inputs.bytes)
            self.logits = self._mirror(logits_bytes(layout.batch, 1, vocab_size))
        except GenerationError:
            self.free()
            raise
        self._wide_logits: Mirror | None = None

    def _mirror(self, size: int) -> Mirror:
        self._mirrors.append(Mirror(self._cuda, size))
        return self._mirrors[-1]

    def write_inputs(self, layout: InputLayout, step: Step) -> None:
        """Put the inputs of a call into the pinned block."""
        for name, binding in layout.bindings().items():  # the fields of Step are called what the inputs are
            self.inputs.array(binding.offset, binding.shape, np.int64)[...] = getattr(step, name)

    def logits_for(self, rows: int, logits: int) -> Mirror:
        """Memory for the logits of a call; up to one per row it is always the same, as graphs need."""
        size = logits_bytes(rows, logits, self._vocab_size)
        if size <= self.logits.size:
            return self.logits
        if self._wide_logits is None or self._wide_logits.size < size:
            if self._wide_logits is not None:
                self._mirrors.remove(self._wide_logits)
                self._wide_logits.free()
                self._wide_logits = None
            self._wide_logits = self._mirror(size)
        return self._wide_logits

    def read_logits(self, rows: int, logits: int) -> Float32Array:
        """The logits of the last call on the host, ``[rows, logits, vocab]``, valid until the next one."""
        shape = (rows, logits, self._vocab_size)
        return self.logits_for(rows, logits).array(0, shape, np.float32).view(np.float32)

    def free(self) -> None:
        """Free everything; the stream must be idle."""
        self.graphs.free()
        for mirror in self._mirrors:
            mirror.free()
        self._mirrors.clear()
        self._cuda.free(self.arena)


def largest_workspace_bytes(info: EngineInfo, inputs: InputLayout) -> int:
    """GPU memory of the largest workspace an engine can ask for; ``inputs`` is its largest call."""
    cache = KVLayout.of(info, info.max_batch, info.max_capacity)
    narrow = logits_bytes(inputs.rows, 1, info.vocab_size)
    return cache.bytes + inputs.bytes + narrow + logits_bytes(inputs.rows, inputs.logits, info.vocab_size)


class TensorRTCache:
    """Keys and values of some sequences. When it is dropped, its workspace goes back to the pool."""

    def __init__(self, pool: WorkspacePool, workspace: Workspace) -> None:
        self.workspace = workspace
        self._pool = pool
        weakref.finalize(self, pool.give_back, workspace).atexit = False

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.workspace.layout.batch

    @property
    def capacity(self) -> int:
        """Tokens each sequence can hold."""
        return self.workspace.layout.capacity

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of row ``source`` over row ``target``."""
        self._pool.move_row(self.workspace, source, target, length)


class WorkspacePool:
    """Makes workspaces, and keeps the last one that was given back for the next cache of the same shape.

    Its graphs are then kept too. Memory of another shape is freed before more is allocated, so that an idle
    cache never stands in the way of one that is wanted.

    Attributes:
        lock: held by whoever puts work on the stream, so that nothing of another thread gets into a capture.
    """

    def __init__(self, cuda: Cuda, stream: int, inputs: InputLayout, vocab_size: int) -> None:
        """Make an empty pool.

        Args:
            cuda: the GPU.
            stream: that all work goes to.
            inputs: sequence and logits of the largest call; its rows are those of each workspace.
            vocab_size: width of the logits.
        """
        self._cuda = cuda
        self._stream = stream
        self._inputs = inputs
        self._vocab_size = vocab_size
        self.lock = threading.Lock()
        self._idle: list[Workspace] = []

    def cache(self, layout: KVLayout) -> TensorRTCache:
        """An empty cache.

        Raises:
            GenerationError: the GPU has too little memory left.
        """
        with self.lock, self._cuda.selected():
            return TensorRTCache(self, self._take(layout))

    def give_back(self, workspace: Workspace) -> None:
        """Take a workspace that nobody uses any more.

        Runs wherever the garbage collector does, perhaps while this very thread holds the lock: so it takes
        none, and appending to a list is atomic.
        """
        self._idle.append(workspace)

    def clear(self) -> None:
        """Free what is idle."""
        while self._idle:
            self._idle.pop().free()

    def move_row(self, workspace: Workspace, source: int, target: int, length: int) -> None:
        """See :meth:`TensorRTCache.move_row`; ordered with the steps by the stream."""
        arena = workspace.arena
        with self.lock, self._cuda.selected():
            for copy in workspace.layout.row_copies(source, target, length):
                sizes = copy.pitch, copy.width, copy.height
                self._cuda.copy_strided(arena + copy.target, arena + copy.source, *sizes, self._stream)

    def _take(self, layout: KVLayout) -> Workspace:
        found = None
        while self._idle:
            workspace = self._idle.pop()
            if found is None and workspace.layout == layout:
                found = workspace
            else:
                self._cuda.synchronize(self._stream)
                workspace.free()
        if found is not None:
            return found
        inputs = InputLayout(layout.batch, self._inputs.sequence, self._inputs.logits)
        try:
            return Workspace(self._cuda, self._stream, layout, inputs, self._vocab_size)
        except GenerationError as error:
            raise GenerationError(
                f"a KV cache of {layout.batch} x {layout.capacity} tokens takes {layout.bytes / 1e9:.2f} GB "
                f"and cannot be allocated: {error}; take a smaller batch or fewer tokens"
            ) from error
