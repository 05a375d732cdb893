"""What TensorRT calls while it parses and builds: its log, its progress, and where it writes the engine."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from q2export.contracts.progress import Advance

_log = logging.getLogger("q2export.tensorrt")
_loggers: list[Any] = []
"""Kept until the process ends: builders, networks and runtimes write to their logger while they are
destroyed, and where they are part of a reference cycle, Python may destroy the logger first."""

PROGRESS_STEPS = 1000
"""What a whole build advances the progress bar by."""


class ByteSink(Protocol):
    """Where the serialized engine goes."""

    def write(self, data: memoryview) -> int:
        """Append bytes."""


def make_logger(trt: ModuleType, errors: list[str]) -> Any:
    """An ``ILogger`` whose messages go to the log ``q2export.tensorrt``, and errors also to ``errors``.

    TensorRT's errors are logged one level lower than it reports them: what matters of them is raised.
    """
    base: Any = trt.ILogger
    severity = base.Severity

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                errors.append(message)
                _log.info("%s", message)
            elif level in (severity.WARNING, severity.INFO):
                _log.debug("%s", message)

    return keep_logger(Log())


def keep_logger(logger: Any) -> Any:
    """Keep an ``ILogger`` alive until the process ends, and return it."""
    _loggers.append(logger)
    return logger


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """How much of a build is done, from the nested phases TensorRT reports."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, within ``parent``."""
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """Step ``index``, counted from 0, of a phase is done."""
        if name in self._phases:
            self._phases[name].done = index + 1

    def finish(self, name: str) -> None:
        """A phase is over."""
        self._phases.pop(name, None)

    def fraction(self) -> float:
        """From 0 to 1, never less than before."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        self._best = max([self._best, *(self._fraction(name) for name in roots)])
        return self._best

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._fraction(child) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)


def make_monitor(trt: ModuleType, advance: Advance, interrupt: Interrupt) -> Any:
    """An ``IProgressMonitor`` that advances a bar of :data:`PROGRESS_STEPS` and stops where asked to."""
    base: Any = trt.IProgressMonitor
    progress = BuildProgress()

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.shown = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            shown = int(progress.fraction() * PROGRESS_STEPS)
            advance(shown - self.shown)
            self.shown = shown
            return interrupt.number is None

    return Monitor()


def make_writer(trt: ModuleType, sink: ByteSink, failures: list[Exception]) -> Any:
    """An ``IStreamWriter`` into ``sink``; what goes wrong there is kept in ``failures``, not lost in C++."""
    base: Any = trt.IStreamWriter

    class Writer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            try:
                sink.write(view)
            except Exception as error:  # noqa: BLE001 - raised again when TensorRT has returned
                failures.append(error)
                return 0
            return len(view)

    return Writer()


@dataclass
class Interrupt:
    """The first signal that asked the build to stop; None while none has."""

    number: int | None = None


@contextmanager
def stopping_on_signals() -> Iterator[Interrupt]:
    """While the block runs, note SIGINT and SIGTERM instead of raising within a callback of C++.

    A signal that came is delivered again when the block ends, to the handlers that were there before.
    Signals that the program ignores stay ignored, as SIGINT is in a shell's background job. Outside the main
    thread, where Python delivers none, nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: object) -> None:
        interrupt.number = interrupt.number or number

    handled = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in handled}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if interrupt.number is not None:
            signal.raise_signal(interrupt.number)
