"""CUDA graphs of decode steps: when to capture, when to replay.

A decode step over a number of rows always has the same shapes and addresses, and differs only in what its
input block holds. The first one runs as it is. The second runs, too, and is captured right behind it, when
nothing else has run in that context and whatever the engine prepares for the shapes is ready. From then on a
step is one launch instead of a hundred.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

from q2export.errors import GenerationError
from q2export.runtime.backends.cuda.runtime import Cuda

_log = logging.getLogger(__name__)


class Action(enum.Enum):
    """What to do with a step."""

    RUN = "run"
    CAPTURE = "run, then capture"
    REPLAY = "replay"


class GraphPolicy:
    """Decides what to do with each step, by its number of rows. Knows nothing of CUDA."""

    def __init__(self) -> None:
        self._ready: set[int] = set()
        self._captured: set[int] = set()
        self._refused = False

    def action(self, rows: int) -> Action:
        """What to do with the next step over ``rows`` rows."""
        if rows in self._captured:
            return Action.REPLAY
        return Action.CAPTURE if rows in self._ready and not self._refused else Action.RUN

    def ran(self, rows: int) -> None:
        """A step ran as it is."""
        self._ready.add(rows)

    def captured(self, rows: int) -> None:
        """A step was captured."""
        self._captured.add(rows)

    def refused(self) -> None:
        """The engine cannot be captured: no further attempt."""
        self._refused = True


class DecodeGraphs:
    """The graphs of one workspace, one per number of rows; freed with it."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        self._stream = stream
        self._policy = GraphPolicy()
        self._graphs: dict[int, int] = {}

    def run(
        self,
        rows: int,
        prepare: Callable[[], None],
        enqueue: Callable[[], None],
        capturable: Callable[[], bool],
    ) -> bool:
        """Run a decode step; whether it was captured, too, for the next one.

        Args:
            rows: sequences of the step.
            prepare: binds shapes and addresses; called when the step is not replayed.
            enqueue: puts all work of the step on the stream.
            capturable: whether the engine can be captured in its present state.
        """
        action = self._policy.action(rows)
        if action is Action.REPLAY:
            self._cuda.launch(self._graphs[rows], self._stream)
            return False
        prepare()
        enqueue()
        self._policy.ran(rows)
        return action is Action.CAPTURE and capturable() and self._capture(rows, enqueue)

    def _capture(self, rows: int, enqueue: Callable[[], None]) -> bool:
        """Record the step that was just enqueued; it does not run again."""
        try:
            self._graphs[rows] = self._cuda.capture(enqueue, self._stream)
        except GenerationError as error:
            _log.warning("decode steps run without a CUDA graph: %s", error)
            self._policy.refused()
            return False
        self._policy.captured(rows)
        return True

    def free(self) -> None:
        """Destroy all graphs."""
        for graph in self._graphs.values():
            self._cuda.destroy_graph(graph)
        self._graphs.clear()
