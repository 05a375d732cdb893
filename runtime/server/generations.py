"""The texts of one request while they are generated."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from q2export.errors import Q2ExportError
from q2export.runtime.options import OptionKeywords
from q2export.runtime.results import TokenEvent
from q2export.runtime.scheduler import ScheduledGeneration
from q2export.runtime.server.errors import generation_failed
from q2export.runtime.server.mailbox import Mailbox
from q2export.runtime.server.metrics import Metrics, Stopwatch
from q2export.runtime.server.service import ServedModel
from q2export.runtime.structured import Grammar

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Arrival:
    """A token.

    Attributes:
        choice: number of the text it belongs to.
        event: the token.
        seconds: :func:`time.perf_counter` when it was chosen.
    """

    choice: int
    event: TokenEvent
    seconds: float


@dataclass(frozen=True)
class _End:
    error: Q2ExportError | None


class Generations:
    """The texts of one request. Make it in the loop that reads it.

    Args:
        metrics: of the application.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begin = time.perf_counter()
        self._stopwatch: Stopwatch | None = None
        self._mailbox: Mailbox[Arrival | _End] = Mailbox()
        self._running: list[ScheduledGeneration] = []
        self._left = 0

    def submit(
        self,
        model: ServedModel,
        prompt: list[int],
        options: OptionKeywords,
        *,
        count: int = 1,
        grammar: Grammar | None = None,
        priority: int = 0,
    ) -> None:
        """Begin ``count`` more texts of one prompt; may be called from any one thread.

        Raises:
            GenerationError: it is refused.
        """
        first, mailbox = len(self._running), self._mailbox
        self._stopwatch = self._stopwatch or self._metrics.stopwatch(model.name, self._begin)

        def on_event(place: int, event: TokenEvent) -> None:
            mailbox.put(Arrival(first + place, event, time.perf_counter()))

        def on_end(place: int, error: Q2ExportError | None) -> None:
            mailbox.put(_End(error))

        self._running += model.scheduler.submit_many(
            prompt,
            count,
            priority=priority,
            processors=() if grammar is None else [grammar.processor() for _ in range(count)],
            on_event=on_event,
            on_end=on_end,
            **options,
        )
        self._left += count

    async def arrivals(self) -> AsyncIterator[list[Arrival]]:
        """Tokens as they come, all that are there at once, until every text has ended.

        Raises:
            ApiError: what ended one of them; the others are cancelled.
        """
        try:
            while self._left:
                items = await self._mailbox.take()
                ends = [item for item in items if isinstance(item, _End)]
                self._left -= len(ends)
                if tokens := [item for item in items if isinstance(item, Arrival)]:
                    self._time(tokens)
                    yield tokens
                for end in ends:
                    if end.error is not None:
                        raise generation_failed(end.error)
            if self._stopwatch is not None:
                self._stopwatch.end()
        finally:
            self.cancel()

    def _time(self, arrivals: list[Arrival]) -> None:
        if self._stopwatch is not None:
            for arrival in arrivals:
                self._stopwatch.token(arrival.choice, arrival.seconds)

    def __enter__(self) -> Self:
        """A block whose failure cancels what was begun."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()

    def cancel(self) -> None:
        """End what still runs; may be called again."""
        for generation in self._running:
            generation.cancel()
