"""Interleaved timing and its summary.

Contestants take turns (A, B, C, then B, C, A, ...), so that a change of the machine's speed during the run
meets all of them alike; a speed ratio is the median of the ratios within the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

Turn = Callable[[], Sequence[float]]
"""Runs a contestant once or a few times and returns what was measured, mostly the seconds of each run."""


Samples = dict[str, dict[str, list[list[float]]]]
"""Per metric, per contestant, per round: the measured values (seconds, or bytes)."""


@dataclass(frozen=True)
class Summary:
    """Values of one contestant (seconds, or bytes) over all turns."""

    median: float
    min: float
    max: float
    runs: int

    def as_dict(self) -> dict[str, float | int]:
        """The summary as JSON-ready data."""
        return asdict(self)


def interleave(
    turns: Mapping[str, Turn], rounds: int, pause: float = 0.0, warm_up: bool = True
) -> dict[str, list[list[float]]]:
    """Give every contestant one turn per round, in an order that rotates from round to round.

    Args:
        turns: the contestants by name.
        rounds: number of rounds that are recorded.
        pause: seconds to wait before each turn, for the threads of the previous contestant to go to sleep.
        warm_up: run one more round first and drop it.

    Returns:
        per contestant, per round, the values of its turn.
    """
    names = list(turns)
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            time.sleep(pause)
            values = list(turns[name]())
            if number >= 0:
                samples[name].append(values)
    return samples


def summarize(rounds: Sequence[Sequence[float]]) -> Summary:
    """Median, minimum and maximum over all runs of all rounds."""
    runs = [seconds for turn in rounds for seconds in turn]
    return Summary(statistics.median(runs), min(runs), max(runs), len(runs))


def paired_speedup(subject: Sequence[Sequence[float]], peer: Sequence[Sequence[float]]) -> float:
    """How many times faster ``subject`` is than ``peer``: median over the rounds of peer time / subject time.

    Raises:
        ValueError: if the two did not run in the same rounds.
    """
    if len(subject) != len(peer) or not subject:
        raise ValueError(f"need the same rounds of both contestants, got {len(subject)} and {len(peer)}")
    pairs = zip(subject, peer, strict=True)
    return statistics.median(statistics.median(theirs) / statistics.median(ours) for ours, theirs in pairs)
