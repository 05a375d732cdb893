"""Cases of kind ``serving``: several clients at once, each of which asks one request after the other."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.case import ServingCase
from benchmarks.checkpoint import make_checkpoint
from benchmarks.generation import check_logits, start_worker
from benchmarks.measure import Turn, interleave
from benchmarks.process import CommandError
from benchmarks.result import Outcome
from benchmarks.settings import RunSettings
from benchmarks.worker import Worker, WorkerError

PER_TOKEN, FIRST_TOKEN, BETWEEN = "seconds per token", "first token", "p99 between tokens"
_TOKEN_IDS = 256
_CHECK_TOKENS = 96
_SEED = 11

Clients = list[list[tuple[list[int], int]]]


def run_serving(case: ServingCase, settings: RunSettings) -> Outcome:
    """Measure the case.

    Raises:
        WrongResultError: a contestant's logits are not the reference's.
        Q2ExportError: the model cannot be made, or q2export itself fails.
    """
    checkpoint = make_checkpoint(case.model, settings.work_dir / case.model.config)
    outcome = Outcome()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for contestant in case.contestants:
            print(f"measuring: trial of {contestant.name}", file=sys.stderr)
            try:
                worker = stack.enter_context(start_worker(contestant, checkpoint, case, settings))
                worker.load()
                worker.serve_clients(make_clients(case, 2, requests=1))
            except (CommandError, WorkerError) as error:
                if contestant.worker.startswith("q2export"):
                    raise
                outcome.skipped[contestant.name] = str(error)
                print(f"skipped {contestant.name}: {error}", file=sys.stderr)
                continue
            workers[contestant.name] = worker
            outcome.versions[contestant.name] = worker.versions
        vocab_size = int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
        ((prompt, _),) = make_clients(case, 1, requests=1)[0]
        outcome.checks = check_logits(case, workers, prompt[:_CHECK_TOKENS], vocab_size)
        for count in case.clients:
            print(f"measuring: {count} clients", file=sys.stderr)
            _measure(case, count, workers, outcome)
    return outcome


def make_clients(case: ServingCase, count: int, requests: int | None = None) -> Clients:
    """The requests of ``count`` clients; always the same, and no prompt twice."""
    draw = random.Random(_SEED + count)
    return [
        [
            ([draw.randrange(_TOKEN_IDS) for _ in range(case.prompt_tokens)], draw.randint(*case.new_tokens))
            for _ in range(case.requests if requests is None else requests)
        ]
        for _ in range(count)
    ]


def _measure(case: ServingCase, count: int, workers: dict[str, Worker], outcome: Outcome) -> None:
    clients = make_clients(case, count)
    turns: dict[str, Turn] = {name: partial(turn, worker, clients) for name, worker in workers.items()}
    found = interleave(turns, case.rounds, case.pause_seconds, case.warm_up)
    for place, metric in enumerate((PER_TOKEN, FIRST_TOKEN, BETWEEN)):
        outcome.samples[f"{metric}, {count} clients"] = {
            name: [[values[place]] for values in rounds] for name, rounds in found.items()
        }


def turn(worker: Worker, clients: Clients) -> list[float]:
    """Seconds per token of all clients together; median to a first token; 99th percentile between two."""
    times = worker.serve_clients(clients)
    tokens = sum(count for requests in clients for _, count in requests)
    elapsed = max(request[-1] for request in times)
    first = statistics.median(request[1] - request[0] for request in times)
    return [elapsed / tokens, first, percentile_between(times)]


def percentile_between(times: Sequence[Sequence[float]]) -> float:
    """The 99th percentile of the seconds between a token and the next of its text."""
    between = sorted(
        later - earlier for request in times for earlier, later in itertools.pairwise(request[1:])
    )
    return between[min(len(between) - 1, int(0.99 * len(between)))]
