"""The worker's side of the protocol: JSON lines on stdin, one JSON line back on stdout for each.

====================  ==============================================  =========================
action                arguments                                       answer
====================  ==============================================  =========================
start (first)         model, threads, dtype, experts                  versions
load                                                                  seconds
generate              tokens, count                                   seconds (one per token)
generate_batch        prompts, count                                  seconds (one per step)
serve_clients         clients (requests of each: prompt, count)       times (of each request)
logits                tokens, indices                                 logits
====================  ==============================================  =========================

The first of the seconds is that of the prompt: until its first token is chosen.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.workers.traffic import Stepper, closed_loop


@dataclass(frozen=True)
class Settings:
    """What a contestant runs: a checkpoint or built model, and how (see the contestants of a case)."""

    model: str
    threads: int
    dtype: str
    experts: str | None


class Model(Protocol):
    """A library, loaded with one model."""

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Greedy continuation of exactly ``count`` tokens, end-of-text or not."""

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """Continue all of the prompts, of one length, at once: seconds of each of ``count`` steps.

        A step chooses a token of every sequence; the first one reads the prompts.
        """

    def stepper(self, clients: int) -> Stepper:
        """Runs the requests of so many clients at once; a library that cannot has no such method."""

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits over the vocabulary after the prompt."""


class Library(Protocol):
    """What a worker module offers."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries at work."""

    def load(self) -> Model:
        """Load the model; libraries are imported already."""


def serve(make: type[Any]) -> None:
    """Answer the runner until it closes stdin. ``make(settings)`` gives the :class:`Library`."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    library: Library | None = None
    model: Model | None = None
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("action")
        try:
            if action == "start":
                library = make(Settings(**request))
                answer: dict[str, object] = {"versions": library.versions()}
            elif action == "load":
                assert library is not None
                model = None  # before the new one, so that memory is not held twice
                gc.collect()
                start = time.perf_counter()
                model = library.load()
                answer = {"seconds": time.perf_counter() - start}
            else:
                assert model is not None
                answer = _measure(model, action, request)
        except Exception as error:  # noqa: BLE001 - reported to the runner, which ends the case
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def step_seconds(steps: Iterable[object]) -> list[float]:
    """Seconds that each item takes to come."""
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in steps]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _measure(model: Model, action: str, request: dict[str, Any]) -> dict[str, object]:
    if action == "logits":
        logits = model.logits(request["tokens"])
        return {"logits": [float(logits[index]) for index in request["indices"]]}
    if action == "serve_clients":
        clients = request["clients"]
        return {"times": closed_loop(model.stepper(len(clients)), clients)}
    count = request.get("count", 0)
    if action == "generate":
        seconds = step_seconds(model.tokens(request["tokens"], count))
    elif action == "generate_batch":
        seconds = model.batch_seconds(request["prompts"], count)
    else:
        raise ValueError(f"unknown action {action!r}")
    if len(seconds) != count:
        raise RuntimeError(f"asked for {count} tokens, got {len(seconds)}")
    return {"seconds": seconds}
