"""An engine on a GPU as a backend: memory for caches and steps, one stream, decode steps as CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from q2export.contracts.step import LOGITS
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.cuda.buffers import LOGIT_BYTES, Binding, InputLayout, KVLayout
from q2export.runtime.backends.cuda.executor import DeviceTensor, Executor
from q2export.runtime.backends.cuda.runtime import Cuda
from q2export.runtime.backends.cuda.steps import Step, StepProfile, Window, plan_windows
from q2export.runtime.backends.cuda.workspace import (
    CudaCache,
    Mirror,
    Workspace,
    WorkspacePool,
)


class CudaBackend:
    """A :class:`~q2export.runtime.backends.base.Backend` over an engine on a GPU.

    One call of the engine runs at a time; threads that share the backend wait for each other.
    """

    def __init__(self, info: EngineInfo, executor: Executor, cuda: Cuda, stream: int) -> None:
        """Make room for the largest step.

        Args:
            info: from the manifest.
            executor: of the engine.
            cuda: the GPU it is on, selected.
            stream: that the executor puts its work on.
        """
        self._info = info
        self._executor = executor
        self._cuda = cuda
        self._stream = stream
        self._profiles = tuple(executor.profiles)
        largest = largest_call(info, self._profiles)
        self._widest = largest.sequence
        arena = KVLayout.of(info, info.max_batch, info.max_capacity)
        self._pool = WorkspacePool(cuda, stream, arena, largest, info.vocab_size)
        release = weakref.finalize(self, _release, cuda, stream, self._pool, executor)
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

    def new_cache(self, batch: int, capacity: int) -> CudaCache:
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

    @property
    def arena_is_lazy(self) -> bool:
        """GPU memory is taken at once."""
        return False

    def new_arena(self, rows: int, capacity: int) -> CudaCache:
        """Allocate a cache whose rows come and go, of at most ``max_batch`` rows.

        Raises:
            GenerationError: ``rows`` or ``capacity`` is beyond what the engine was built for, the GPU has too
                little memory left, or a step could not begin at every row.
        """
        cache = self.new_cache(rows, capacity)
        layout = cache.workspace.arena.layout
        if not layout.can_begin_at(cache.workspace.first + 1):
            raise GenerationError(
                f"a row of {layout.capacity} tokens ends between addresses that the engine takes; rebuild "
                "with a capacity.max that is a multiple of 16"
            )
        return cache

    def forward(
        self,
        cache: CudaCache,
        input_ids: Int64Array,
        past_lengths: Int64Array,
        query_lengths: Int64Array,
        logits_indices: Int64Array,
        first_row: int = 0,
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
                return self._run(cache.workspace, first_row, windows[0], windows[0].cut(step), True)
            logits = np.zeros((rows, asked, self.vocab_size), np.float32)
            for window in windows:
                wanted = window.asked(step)
                produced = self._run(cache.workspace, first_row, window, window.cut(step), wanted)
                if wanted:
                    window.collect(step, produced, logits)
            return logits

    def _run(
        self, workspace: Workspace, first_row: int, window: Window, step: Step, wanted: bool
    ) -> Float32Array:
        """One call of the engine; the logits only if they are ``wanted``."""
        rows = len(step.input_ids)
        layout = InputLayout(rows, window.sequence, window.logits)
        logits = workspace.logits_for(rows, window.logits)
        workspace.write_inputs(layout, step)
        profile = window.profile.index

        def prepare() -> None:
            shape = (rows, window.logits, self.vocab_size)
            self._executor.bind(
                profile,
                {
                    **_placed(layout.bindings(), workspace.inputs.device),
                    **_placed(workspace.cache_bindings(rows, first_row), workspace.arena.address),
                    LOGITS.name: DeviceTensor(logits.device, shape),
                },
            )

        def enqueue() -> None:
            self._enqueue(profile, workspace, layout, logits, wanted)

        decodes = wanted and first_row == 0 and (window.sequence, window.logits) == (1, 1)
        if decodes and self._executor.captures:
            if workspace.graphs.run(rows, prepare, enqueue, lambda: self._executor.is_capturable(profile)):
                self._executor.captured()
        else:
            prepare()
            enqueue()
        self._cuda.synchronize(self._stream)
        return workspace.read_logits(rows, window.logits)

    def _enqueue(
        self, profile: int, workspace: Workspace, layout: InputLayout, logits: Mirror, wanted: bool
    ) -> None:
        """Inputs to the GPU, the engine, logits back: all on the stream, nothing waits."""
        stream, inputs = self._stream, workspace.inputs
        self._cuda.upload(inputs.device, inputs.host, layout.bytes, stream)
        self._executor.enqueue(profile)
        if wanted:
            size = layout.rows * layout.logits * self.vocab_size * LOGIT_BYTES
            self._cuda.download(logits.host, logits.device, size, stream)


def largest_call(info: EngineInfo, profiles: Sequence[StepProfile]) -> InputLayout:
    """The inputs of the largest call that an engine of these profiles is given."""
    sequence, logits = (max(getattr(one, name).max for one in profiles) for name in ("sequence", "logits"))
    return InputLayout(info.max_batch, sequence, logits)


def _placed(bindings: Mapping[str, Binding], base: int) -> dict[str, DeviceTensor]:
    """Where a block's tensors lie whose address is ``base``."""
    return {name: DeviceTensor(base + one.offset, one.shape) for name, one in bindings.items()}


def _release(cuda: Cuda, stream: int, pool: WorkspacePool, executor: Executor) -> None:
    with cuda.selected():
        cuda.synchronize(stream)
        pool.clear()
        executor.release()
