"""A request as its owner sees it: tokens as they come, a result, a way to end it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from q2export.errors import CancelledError, Q2ExportError
from q2export.runtime.results import GenerationResult, TokenEvent

if TYPE_CHECKING:
    from typing import Self

OnEvent = Callable[[TokenEvent], None]
OnEnd = Callable[[Q2ExportError | None], None]


class ScheduledGeneration:
    """What :meth:`~q2export.runtime.scheduler.Scheduler.submit` returns.

    Iterate over it for the tokens as they come, in one thread; any number of threads may wait for its result.
    It is a context manager, whose end cancels what is left.

    Args:
        on_event: takes the tokens instead of the iterator.
        on_end: told once, behind the last token, with the error if there was one.
        wake: tells the scheduler that the request was cancelled.
    """

    def __init__(self, on_event: OnEvent | None, on_end: OnEnd | None, wake: Callable[[], None]) -> None:
        self._events: SimpleQueue[TokenEvent | None] = SimpleQueue()
        self._on_event = on_event
        self._on_end = on_end
        self._wake = wake
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._result: GenerationResult | None = None
        self._error: Q2ExportError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        """The next token; waits for it.

        Raises:
            StopIteration: the text has ended, or was cancelled.
            GenerationError: the request failed: a deadline, logits that are not finite, a processor.
            Q2ExportError: the engine failed.
        """
        event = self._events.get()
        if event is not None:
            return event
        self._events.put(None)  # for whoever asks again
        if self._error is None or isinstance(self._error, CancelledError):
            raise StopIteration
        raise self._error

    def result(self, timeout: float | None = None) -> GenerationResult:
        """The whole result; waits for it.

        Args:
            timeout: seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: it is not there in time; the request goes on.
            CancelledError: the request was cancelled.
            Q2ExportError: as in :meth:`__next__`.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the generation has not ended within {timeout} s")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """End the generation; may be called from any thread, at any time, and does not wait.

        At most the step that runs still delivers its tokens. Nothing happens to one that has ended.
        """
        self._cancelled.set()
        self._wake()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

    @property
    def error(self) -> Q2ExportError | None:
        """What it ended with, if it has ended and has no result."""
        return self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def deliver(self, event: TokenEvent) -> None:
        """Hand a token to the owner; of the scheduler's thread."""
        if event.result is not None:
            self._result = event.result
        if self._on_event is None:
            self._events.put(event)
        else:
            self._on_event(event)

    def end(self, error: Q2ExportError | None) -> None:
        """Tell the owner that there will be no more tokens; of the scheduler's thread."""
        self._error = error
        self._ended.set()
        self._events.put(None)
        if self._on_end is not None:
            self._on_end(error)
