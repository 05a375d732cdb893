"""The scheduler: requests from any thread, one thread that runs the loop."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING

from q2export.errors import ClosedError, GenerationError, Q2ExportError, QueueFullError
from q2export.runtime.engine import Engine, Prompt
from q2export.runtime.options import OptionKeywords
from q2export.runtime.results import TokenEvent
from q2export.runtime.sampling import LogitsProcessor
from q2export.runtime.scheduler.arena import allocate_arena
from q2export.runtime.scheduler.generation import OnEnd, OnEvent, ScheduledGeneration
from q2export.runtime.scheduler.loop import Loop
from q2export.runtime.scheduler.options import SchedulerOptions, SchedulerStatistics
from q2export.runtime.scheduler.pace import Pace
from q2export.runtime.scheduler.request import Request
from q2export.runtime.sequence import RunningSequence

if TYPE_CHECKING:
    from typing import Self, Unpack


class Scheduler:
    """Runs many requests on one engine: they join and leave at any step, and share prefixes.

    The text of a request is that of :meth:`Engine.generate`, token for token, whatever else runs. One thread,
    which the scheduler owns, makes all calls of the engine; the methods may be called from any other. It is a
    context manager, whose end closes it; the engine stays open.

    Args:
        engine: not closed; other uses of it at the same time take turns with the scheduler, or cores from it.
        options: how to share it.

    Raises:
        GenerationError: the engine is closed, or has too little memory for a cache.
        OptionError: the options ask for more than the engine was built for.
    """

    def __init__(self, engine: Engine, options: SchedulerOptions | None = None) -> None:
        self.engine = engine
        self.options = SchedulerOptions() if options is None else options
        arena = allocate_arena(engine.backend, self.options)
        self._request_tokens, self._rows, self._kv_tokens = arena.request_tokens, arena.rows, arena.kv_tokens
        pace = Pace(self.options.token_interval, engine.backend.prefill_chunk)
        self._loop = Loop(engine.backend, arena, pace, engine.lifetime.computing, self.options.speculate)
        self._changed = threading.Condition()
        self._incoming: list[Request] = []
        self._arrivals = 0
        self._idle = True
        self._draining = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="q2export-scheduler", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # no call of the engine may be running when the interpreter goes

    def submit(
        self,
        prompt: Prompt,
        *,
        priority: int = 0,
        deadline: float | None = None,
        processor: LogitsProcessor | None = None,
        on_event: OnEvent | None = None,
        on_end: OnEnd | None = None,
        **options: Unpack[OptionKeywords],
    ) -> ScheduledGeneration:
        """Ask for the continuation of a prompt; returns at once. What is wrong with it is refused here.

        Args:
            prompt: token ids, or text.
            priority: the larger ones go first, and put off sequences of lower ones that run.
            deadline: seconds from now until it must be done.
            processor: of its logits, for this request alone; called by the scheduler's thread.
            on_event: takes each token instead of the iterator; called by the scheduler's thread, must not
                wait. What it raises ends the request.
            on_end: told once that there will be no more tokens, with the error if there was one; likewise.
            options: as in :meth:`Engine.generate`.

        Raises:
            GenerationError: as in :meth:`Engine.generate`.
            QueueFullError: as many requests wait as may.
            ClosedError: the scheduler is draining or closed.
        """
        processors = () if processor is None else (processor,)
        (sequence,) = self.engine.sequences(
            [prompt], options, capacity=self._request_tokens, processors=processors
        )
        generation = ScheduledGeneration(on_event, on_end, self._wake)
        self._queue([(sequence, generation)], priority, deadline)
        return generation

    def submit_many(
        self,
        prompt: Prompt,
        count: int,
        *,
        priority: int = 0,
        deadline: float | None = None,
        processors: Sequence[LogitsProcessor] = (),
        on_event: Callable[[int, TokenEvent], None] | None = None,
        on_end: Callable[[int, Q2ExportError | None], None] | None = None,
        **options: Unpack[OptionKeywords],
    ) -> list[ScheduledGeneration]:
        """Ask for several continuations of one prompt, which is computed once; all of them or none is queued.

        Args:
            prompt: as in :meth:`submit`; so are all others, except:
            count: continuations, at least 1.
            processors: one for each, or none.
            on_event: called with the place of the continuation, too.
            on_end: likewise.
            options: of a single ``seed``, the continuations take that and those that follow it.

        Raises:
            GenerationError: as in :meth:`submit`.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise GenerationError(f"count must be an integer of at least 1, found {count!r}")
        seed = options.get("seed")
        if isinstance(seed, int):
            options["seed"] = range(seed, seed + count)
        prompts = [self.engine.token_ids(prompt)] * count
        sequences = self.engine.sequences(
            prompts, options, capacity=self._request_tokens, processors=processors
        )
        generations = [
            ScheduledGeneration(
                None if on_event is None else functools.partial(on_event, place),
                None if on_end is None else functools.partial(on_end, place),
                self._wake,
            )
            for place in range(count)
        ]
        self._queue(list(zip(sequences, generations, strict=True)), priority, deadline)
        return generations

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that are there.

        Args:
            timeout: seconds to wait; None waits as long as it takes.

        Returns:
            whether all have ended.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._idle, timeout)

    def close(self) -> None:
        """End every request with a :class:`~q2export.errors.ClosedError`; waits for the step that runs.

        May be called from any thread, and again.
        """
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    def statistics(self) -> SchedulerStatistics:
        """Where it stands; from one step to the next, numbers may be of either."""
        loop = self._loop
        return SchedulerStatistics(
            waiting=len(loop.waiting) + len(self._incoming),
            running=len(loop.lineup),
            rows=self._rows,
            kv_tokens_used=loop.lineup.slots.used,
            kv_tokens_retained=loop.lineup.slots.retained,
            kv_tokens=self._kv_tokens,
            **asdict(loop.counts),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _queue(
        self,
        requested: list[tuple[RunningSequence, ScheduledGeneration]],
        priority: int,
        deadline: float | None,
    ) -> None:
        """All of them, or none."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise GenerationError(f"priority must be an integer, found {priority!r}")
        real = isinstance(deadline, (int, float)) and not isinstance(deadline, bool)
        if deadline is not None and not (real and 0 < deadline < threading.TIMEOUT_MAX):
            raise GenerationError(f"deadline must be seconds from now, above 0, found {deadline!r}")
        at = None if deadline is None else time.monotonic() + deadline
        with self._changed:
            if self._draining:
                raise ClosedError("the scheduler takes no more requests: it is draining or closed")
            there = len(self._incoming) + len(self._loop.waiting) + len(self._loop.lineup)
            if there + len(requested) > self._rows + self.options.queue_limit:
                raise QueueFullError(
                    f"{there} requests are there, of which {self._rows} run at once and "
                    f"{self.options.queue_limit} may wait; try again later"
                )
            for sequence, generation in requested:
                self._arrivals += 1
                self._incoming.append(Request(sequence, generation, priority, self._arrivals, at))
            self._idle = False
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while self._take_incoming():
            try:
                self._loop.step()
            except Q2ExportError as error:
                self._loop.fail(error)
            except Exception as error:  # noqa: BLE001 - it ends the requests, and not this thread
                failure = GenerationError(f"the engine failed: {error!r}")
                failure.__cause__ = error
                self._loop.fail(failure)
        self._loop.fail(ClosedError("the scheduler was closed"))
        self._loop.free()
        with self._changed:
            self._idle = True
            self._changed.notify_all()

    def _take_incoming(self) -> bool:
        """Wait until there is something to do; False if that is to end."""
        with self._changed:
            self._idle = not (self._incoming or self._loop.waiting or len(self._loop.lineup))
            if self._idle:
                self._changed.notify_all()  # whoever drains
            self._changed.wait_for(lambda: self._closing or not self._idle)
            incoming, self._incoming = self._incoming, []
            for request in incoming:
                self._loop.add(request)
            return not self._closing
