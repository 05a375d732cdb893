"""The memory caches work in: an arena of rows, input blocks, logits; on the GPU, and pinned on the host."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array
from q2export.runtime.backends.cuda.buffers import Binding, InputLayout, KVLayout, logits_bytes
from q2export.runtime.backends.cuda.graphs import DecodeGraphs
from q2export.runtime.backends.cuda.runtime import Cuda
from q2export.runtime.backends.cuda.steps import Step

_log = logging.getLogger(__name__)


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


class Arena:
    """The memory of keys and values: rows of one capacity, each free or taken.

    Raises:
        GenerationError: the GPU has too little memory left.
    """

    def __init__(self, cuda: Cuda, layout: KVLayout) -> None:
        self._cuda = cuda
        self.layout = layout
        self.address = cuda.allocate(layout.bytes)
        self._taken = [False] * layout.batch

    @property
    def is_idle(self) -> bool:
        """Whether no row is taken."""
        return not any(self._taken)

    def take(self, rows: int) -> int | None:
        """The first of ``rows`` free rows that lie together; they are taken now. None if there are none."""
        for first in range(self.layout.batch - rows + 1):
            if self.layout.can_begin_at(first) and not any(self._taken[first : first + rows]):
                self._taken[first : first + rows] = [True] * rows
                return first
        return None

    def give_back(self, first: int, rows: int) -> None:
        """These rows are free again."""
        self._taken[first : first + rows] = [False] * rows

    def free(self) -> None:
        """Free the memory."""
        self._cuda.free(self.address)


class Workspace:
    """What the steps over rows of an arena work in, beside the arena: inputs, logits, and captured graphs.

    Attributes:
        arena: where keys and values lie. first: of the rows. rows: how many are in use.

    Raises:
        GenerationError: the GPU has too little memory left.
    """

    def __init__(
        self, cuda: Cuda, stream: int, arena: Arena, first: int, inputs: InputLayout, vocab_size: int
    ) -> None:
        """Allocate.

        Args:
            cuda: the GPU.
            stream: that all work goes to.
            arena: where keys and values lie.
            first: row that the workspace begins at; it serves any number of rows from there on.
            inputs: of the largest call.
            vocab_size: width of the logits.
        """
        self._cuda = cuda
        self._vocab_size = vocab_size
        self.arena = arena
        self.first = first
        self.rows = inputs.rows
        self.graphs = DecodeGraphs(cuda, stream)
        self._mirrors: list[Mirror] = []
        try:
            self.inputs = self._mirror(inputs.bytes)
            self.logits = self._mirror(logits_bytes(inputs.rows, 1, vocab_size))
        except GenerationError:
            self.free()
            raise
        self._wide_logits: Mirror | None = None

    def cache_bindings(self, rows: int, first: int = 0) -> dict[str, Binding]:
        """Where the caches of a step over ``rows`` of its rows, from ``first`` on, lie in the arena."""
        return self.arena.layout.bindings(rows, self.first + first)

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
        """Free everything but the arena; the stream must be idle."""
        self.graphs.free()
        for mirror in self._mirrors:
            mirror.free()
        self._mirrors.clear()


def largest_workspace_bytes(info: EngineInfo, inputs: InputLayout) -> int:
    """GPU memory of the largest workspace an engine can ask for; ``inputs`` is its largest call."""
    cache = KVLayout.of(info, info.max_batch, info.max_capacity)
    narrow = logits_bytes(inputs.rows, 1, info.vocab_size)
    return cache.bytes + inputs.bytes + narrow + logits_bytes(inputs.rows, inputs.logits, info.vocab_size)


class CudaCache:
    """Keys and values of some sequences. When it is dropped, its workspace goes back to the pool."""

    def __init__(self, pool: WorkspacePool, workspace: Workspace, capacity: int) -> None:
        self.workspace = workspace
        self.capacity = capacity
        """Tokens each sequence can hold; its rows may be longer."""
        self._pool = pool
        weakref.finalize(self, pool.give_back, workspace).atexit = False

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.workspace.rows

    @property
    def token_bytes(self) -> int:
        """Memory of one token of one row, in all layers."""
        return self.workspace.arena.layout.token_bytes

    def release_row(self, row: int, length: int) -> None:
        """Nothing: the arena keeps its memory."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of row ``source`` over row ``target``."""
        self._pool.copy_row(self.workspace, source, target, length)


class WorkspacePool:
    """Gives caches rows of one arena, as large as the engine takes; it is allocated for the first of them.

    A cache of any batch and capacity finds its memory there, and the graphs that were captured over the rows
    it begins at. Where no rows are left, or the GPU has no room for the arena, a cache has memory of its own,
    which is kept for the next one of the same shape and freed before another shape is allocated.

    Attributes:
        lock: held by whoever puts work on the stream, so that nothing of another thread gets into a capture.
    """

    def __init__(
        self, cuda: Cuda, stream: int, largest: KVLayout, inputs: InputLayout, vocab_size: int
    ) -> None:
        """Make an empty pool.

        Args:
            cuda: the GPU.
            stream: that all work goes to.
            largest: the arena.
            inputs: sequence and logits of the largest call; its rows are those of each workspace.
            vocab_size: width of the logits.
        """
        self._cuda = cuda
        self._stream = stream
        self._largest = largest
        self._inputs = inputs
        self._vocab_size = vocab_size
        self.lock = threading.Lock()
        self._arena: Arena | None = None
        self._has_room = True  # as far as is known
        self._workspaces: dict[int, Workspace] = {}  # of the arena, by their first row
        self._returned: list[Workspace] = []
        self._own: list[Workspace] = []  # idle ones over arenas of their own

    def cache(self, batch: int, capacity: int) -> CudaCache:
        """An empty cache.

        Raises:
            GenerationError: the GPU has too little memory left.
        """
        layout = replace(self._largest, batch=batch, capacity=capacity)
        with self.lock, self._cuda.selected():
            try:
                return CudaCache(self, self._take(layout), capacity)
            except GenerationError as error:
                raise GenerationError(
                    f"a KV cache of {batch} x {capacity} tokens takes {layout.bytes / 1e9:.2f} GB and cannot "
                    f"be allocated: {error}; take a smaller batch or fewer tokens"
                ) from error

    def give_back(self, workspace: Workspace) -> None:
        """Take a workspace that nobody uses any more.

        Runs wherever the garbage collector does, perhaps while this very thread holds the lock: so it takes
        none, and appending to a list is atomic.
        """
        self._returned.append(workspace)

    def clear(self) -> None:
        """Free what is idle; the arena unless a cache has rows of it."""
        self._sort_returned()
        self._free_own()
        if self._arena is None or not self._arena.is_idle:
            return
        for workspace in self._workspaces.values():
            workspace.free()
        self._workspaces.clear()
        self._arena.free()
        self._arena = None

    def copy_row(self, workspace: Workspace, source: int, target: int, length: int) -> None:
        """See :meth:`CudaCache.copy_row`; ordered with the steps by the stream."""
        arena, first = workspace.arena, workspace.first
        with self.lock, self._cuda.selected():
            for copy in arena.layout.row_copies(first + source, first + target, length):
                sizes = copy.pitch, copy.width, copy.height
                from_, to = arena.address + copy.source, arena.address + copy.target
                self._cuda.copy_strided(to, from_, *sizes, self._stream)

    def _take(self, layout: KVLayout) -> Workspace:
        self._sort_returned()
        arena = self._the_arena()
        first = None if arena is None else arena.take(layout.batch)
        if arena is None or first is None:
            return self._take_own(layout)
        workspace = self._workspaces.get(first)
        if workspace is None:
            self._free_own()  # nothing idle stands in the way
            try:
                workspace = self._made(arena, first)
            except GenerationError:
                arena.give_back(first, layout.batch)
                raise
            self._workspaces[first] = workspace
        workspace.rows = layout.batch
        return workspace

    def _the_arena(self) -> Arena | None:
        if self._arena is None and self._has_room:
            try:
                self._arena = Arena(self._cuda, self._largest)
            except GenerationError as error:
                self._has_room = False
                _log.info("no room for the largest KV cache, each has memory of its own: %s", error)
        return self._arena

    def _take_own(self, layout: KVLayout) -> Workspace:
        """A workspace over an arena of its own."""
        for index, workspace in enumerate(self._own):
            if workspace.arena.layout == layout:
                return self._own.pop(index)
        self._free_own()
        arena = Arena(self._cuda, layout)
        try:
            return self._made(arena, 0)
        except GenerationError:
            arena.free()
            raise

    def _made(self, arena: Arena, first: int) -> Workspace:
        """A workspace for all rows of an arena from ``first`` on."""
        inputs = InputLayout(arena.layout.batch - first, self._inputs.sequence, self._inputs.logits)
        return Workspace(self._cuda, self._stream, arena, first, inputs, self._vocab_size)

    def _sort_returned(self) -> None:
        while self._returned:
            workspace = self._returned.pop()
            if workspace.arena is self._arena:
                workspace.arena.give_back(workspace.first, workspace.rows)
            else:
                self._own.append(workspace)

    def _free_own(self) -> None:
        """Free what has an arena of its own and is idle."""
        while self._own:
            self._cuda.synchronize(self._stream)
            workspace = self._own.pop()
            workspace.free()
            workspace.arena.free()
