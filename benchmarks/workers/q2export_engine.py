"""q2export: a package of ``q2export build``, through the public API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue

import numpy as np
import onnxruntime

import q2export
from benchmarks.workers.serve import Settings, serve
from benchmarks.workers.traffic import Progress
from q2export.runtime.engine import Engine
from q2export.runtime.scheduler import Scheduler, SchedulerOptions


class SchedulerStepper:
    """A scheduler under the protocol of :class:`benchmarks.workers.traffic.Stepper`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._progress: SimpleQueue[Progress | BaseException] = SimpleQueue()

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Submit it."""
        self._scheduler.submit(
            np.array(prompt),
            max_new_tokens=count,
            do_sample=False,
            ignore_eos=True,
            on_event=lambda event: self._progress.put(Progress(request, event.result is not None)),
            on_end=lambda error: None if error is None else self._progress.put(error),
        )

    def step(self) -> Iterable[Progress]:
        """What has come."""
        found = self._progress.get()
        if isinstance(found, BaseException):
            raise found
        return [found]

    def close(self) -> None:
        """End the scheduler."""
        self._scheduler.close()


class LoadedEngine:
    """An engine under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Stream a greedy continuation."""
        events = self._engine.stream(prompt, max_new_tokens=count, do_sample=False, ignore_eos=True)
        return (event.token_id for event in events)

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """The mean of the later steps, as often as there are: results give times as sums."""
        results = self._engine.generate_batch(prompts, max_new_tokens=count, do_sample=False, ignore_eos=True)
        timings = results[-1].timings
        return [timings.time_to_first_token] + [timings.decode_seconds / (count - 1)] * (count - 1)

    def stepper(self, clients: int) -> SchedulerStepper:
        """A scheduler without a cache of prefixes: no prompt comes twice."""
        return SchedulerStepper(Scheduler(self._engine, SchedulerOptions(prefix_bytes=0)))

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Score the prompt and take the last row."""
        last: list[float] = self._engine.score(np.array(prompt))[-1].tolist()
        return last


class Q2Export:
    """Loads packages; threads and package come from the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The package's and ONNX Runtime's."""
        return {"q2export": q2export.__version__, "onnxruntime": onnxruntime.__version__}

    def load(self) -> LoadedEngine:
        """``q2export.load``."""
        settings = self._settings
        return LoadedEngine(q2export.load(settings.model, threads=settings.threads))


if __name__ == "__main__":
    serve(Q2Export)
