"""Clients that each ask one request after the other, against whatever runs several requests at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """A token of a request, and whether it was the last."""

    request: int
    ended: bool


class Stepper(Protocol):
    """Runs several requests at once."""

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Begin a greedy continuation of ``count`` tokens, end-of-text or not."""

    def step(self) -> Iterable[Progress]:
        """Go on until tokens have come, or a part of a prompt was read."""

    def close(self) -> None:
        """Free what it holds."""


def closed_loop(
    stepper: Stepper, clients: Sequence[Sequence[tuple[Sequence[int], int]]]
) -> list[list[float]]:
    """Let every client ask its requests, each when the one before has ended.

    Args:
        stepper: of the library.
        clients: for each, its requests: a prompt and the tokens to generate.

    Returns:
        for each request, when it was asked and when each of its tokens came, in seconds from the start.
    """
    left = [list(reversed(requests)) for requests in clients]
    times: list[list[float]] = []
    owner: list[int] = []
    start = time.perf_counter()

    def ask(client: int) -> None:
        prompt, count = left[client].pop()
        owner.append(client)
        times.append([time.perf_counter() - start])
        stepper.add(len(owner) - 1, prompt, count)

    try:
        for client in range(len(left)):
            ask(client)
        running = len(left)
        while running:
            for progress in stepper.step():
                times[progress.request].append(time.perf_counter() - start)
                if progress.ended:
                    client = owner[progress.request]
                    if left[client]:
                        ask(client)
                    else:
                        running -= 1
    finally:
        stepper.close()
    return times
