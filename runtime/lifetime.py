"""Ending what an engine does, from any thread: closing the engine, cancelling a stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from q2export.errors import GenerationError

if TYPE_CHECKING:
    from typing import Self

    from q2export.runtime.results import TokenEvent

Computing = Callable[[], AbstractContextManager[None]]
"""Makes the context in which one call of a backend is made; entering it raises where there shall be none."""


class Cancelled(Exception):
    """Raised inside a generation whose stream was cancelled; it does not leave the stream."""


class Lifetime:
    """Whether an engine is open, and which threads compute with it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing: list[int] = []
        self._closed = False

    @contextmanager
    def computing(self, cancelled: threading.Event | None = None) -> Iterator[None]:
        """A context for one call of the backend.

        Raises:
            GenerationError: the engine is closed.
            Cancelled: the event is set.
        """
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        thread = threading.get_ident()
        with self._changed:
            if self._closed:
                raise self.refusal()
            self._computing.append(thread)
        try:
            yield
        finally:
            with self._changed:
                self._computing.remove(thread)
                self._changed.notify_all()

    @staticmethod
    def refusal() -> GenerationError:
        """What the use of a closed engine raises."""
        return GenerationError("the engine is closed; load the package again")

    def close(self) -> None:
        """Let no call of the backend begin, and wait for those of other threads to end."""
        own = threading.get_ident()  # a signal handler may close the engine in the middle of a call
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: all(thread == own for thread in self._computing))


class TokenStream:
    """The tokens of one text as they come: iterate over it, in any thread; cancel it from any other.

    It is a context manager, whose end cancels what is left.

    Args:
        generate: starts the generation, given the context that each call of the backend is made in.
        lifetime: of the engine.
    """

    def __init__(
        self, generate: Callable[[Computing], Generator[TokenEvent, None, None]], lifetime: Lifetime
    ) -> None:
        self._cancelled = threading.Event()
        self._events = generate(lambda: lifetime.computing(self._cancelled))
        self._lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        """The next token.

        Raises:
            StopIteration: the text has ended, or the stream was cancelled.
            GenerationError: the engine was closed, or returned NaN or infinity.
        """
        try:
            with self._lock:
                return next(self._events)
        except Cancelled:
            raise StopIteration from None
        finally:
            if self._cancelled.is_set():
                self.cancel()  # it came while the lock was held

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the generation; may be called from any thread, at any time, and does not wait.

        A call of the backend that runs is the last one; its token may still be delivered. Then the iteration
        ends without a result, and the memory of the KV cache is free.
        """
        self._cancelled.set()
        if self._lock.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._lock.release()

    def close(self) -> None:
        """The same as :meth:`cancel`, under the name that generators and :func:`contextlib.closing` use."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
