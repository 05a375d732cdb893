"""``python -m benchmarks.scheduler PACKAGE``: what the scheduler costs and saves, on an engine package.

Three figures, as JSON, of random prompts of the package's vocabulary:

- ``throughput``: tokens/s of requests through the scheduler against ``generate_batch`` of the same prompts,
  round by round in turn; the tokens of both must be the same.
- ``own_seconds_per_token``: time of the scheduler's thread outside the engine.
- ``second_turn``: time to the first token of a conversation's second turn against that of its first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import q2export
from q2export.runtime.backends.base import Int64Array
from q2export.runtime.engine import Engine
from q2export.runtime.results import GenerationResult
from q2export.runtime.scheduler import Scheduler, SchedulerOptions


class TimedBackend:
    """A backend, and the seconds spent in its steps."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, *arguments: Any, **others: Any) -> Any:
        """A step, timed."""
        begun = time.thread_time()
        try:
            return self._backend.forward(*arguments, **others)
        finally:
            self.seconds += time.thread_time() - begun


class Traffic:
    """Random prompts, never the same twice, and options that give all of them as many tokens."""

    def __init__(self, engine: Engine, prompt_tokens: int, new_tokens: int) -> None:
        self._random = np.random.default_rng(0)
        self._vocab_size = engine.backend.vocab_size
        self._prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens

    def prompts(self, count: int) -> list[Int64Array]:
        """``count`` prompts ``[prompt_tokens]``."""
        return [self._random.integers(0, self._vocab_size, self._prompt_tokens) for _ in range(count)]

    def through(self, scheduler: Scheduler, prompts: Sequence[Int64Array]) -> list[GenerationResult]:
        """All of them at once, and their results."""
        several = [
            scheduler.submit(prompt, max_new_tokens=self.new_tokens, do_sample=False, ignore_eos=True)
            for prompt in prompts
        ]
        return [each.result() for each in several]

    def in_a_batch(self, engine: Engine, prompts: Sequence[Int64Array]) -> list[GenerationResult]:
        """The same without the scheduler."""
        return engine.generate_batch(
            prompts, max_new_tokens=self.new_tokens, do_sample=False, ignore_eos=True
        )


def throughput(engine: Engine, traffic: Traffic, rows: int, rounds: int) -> dict[str, float]:
    """Tokens/s both ways, and the median over the rounds of their ratio."""
    batch, scheduled = [], []
    with Scheduler(engine, SchedulerOptions(rows=rows, prefix_bytes=0)) as scheduler:
        for number in range(rounds + 1):
            prompts = traffic.prompts(rows)
            begun = time.perf_counter()
            expected = traffic.in_a_batch(engine, prompts)
            between = time.perf_counter()
            found = traffic.through(scheduler, prompts)
            ended = time.perf_counter()
            if [one.token_ids for one in found] != [one.token_ids for one in expected]:
                raise SystemExit("the scheduler's tokens are not those of generate_batch")
            if number > 0:  # the first round warms up
                batch.append(between - begun)
                scheduled.append(ended - between)
    tokens = rows * traffic.new_tokens
    return {
        "generate_batch_tokens_per_second": tokens / statistics.median(batch),
        "scheduler_tokens_per_second": tokens / statistics.median(scheduled),
        "ratio": statistics.median(one / other for one, other in zip(batch, scheduled, strict=True)),
    }


def own_seconds_per_token(engine: Engine, traffic: Traffic, rows: int) -> float:
    """CPU seconds of the scheduler's thread outside the engine, per token, sampling and events included."""
    backend = TimedBackend(engine.backend)
    timed = Engine(backend, tokenizer=engine.tokenizer, defaults=engine.defaults)
    ended: list[float] = []
    with Scheduler(timed, SchedulerOptions(rows=rows, prefix_bytes=0)) as scheduler:
        traffic.through(scheduler, traffic.prompts(rows))
        for _ in range(2):  # clocks of the thread itself are read on it
            scheduler.submit(
                [0], max_new_tokens=1, on_end=lambda _: ended.append(time.thread_time() - backend.seconds)
            ).result()
            traffic.through(scheduler, traffic.prompts(rows))
        scheduler.submit(
            [0], max_new_tokens=1, on_end=lambda _: ended.append(time.thread_time() - backend.seconds)
        ).result()
    return (ended[-1] - ended[0]) / (2 * rows * traffic.new_tokens)


def second_turn(engine: Engine, tokens: int) -> dict[str, float]:
    """Seconds to the first token of a conversation of so many tokens, and of its next turn of 40 more."""
    traffic = Traffic(engine, tokens, 32)
    with Scheduler(engine) as scheduler:
        traffic.through(scheduler, [np.zeros(64, np.int64)])
        (prompt,) = traffic.prompts(1)
        (first,) = traffic.through(scheduler, [prompt])
        said = np.array([*prompt, *first.token_ids, *range(40)], np.int64)
        (second,) = traffic.through(scheduler, [said])
    before, after = (one.timings.time_to_first_token for one in (first, second))
    return {"first_seconds": before, "second_seconds": after, "share": after / before}


def main(arguments: Sequence[str]) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conversation", type=int, default=2000, help="tokens before the second turn")
    given = parser.parse_args(arguments)
    with q2export.load(given.package, threads=given.threads) as engine:
        traffic = Traffic(engine, given.prompt_tokens, given.new_tokens)
        print(
            json.dumps(
                {
                    "throughput": throughput(engine, traffic, given.rows, given.rounds),
                    "own_seconds_per_token": own_seconds_per_token(engine, traffic, given.rows),
                    "second_turn": second_turn(engine, given.conversation),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main(sys.argv[1:])
