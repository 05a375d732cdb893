"""What a case gives, the judgement of its bars, and the JSON it is stored as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.case import LimitBar, SpeedBar
from benchmarks.measure import Samples, paired_speedup, summarize
from q2export.errors import Q2ExportError


class WrongResultError(Q2ExportError):
    """A contestant computes something else than the reference; its time would mean nothing."""


@dataclass
class Outcome:
    """Everything measured in one case.

    Attributes:
        samples: see :data:`benchmarks.measure.Samples`.
        checks: per contestant, the largest difference of its logits from the reference's.
        versions: per contestant, of its libraries.
        skipped: contestants that could not run, with the reason.
    """

    samples: Samples = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def records(samples: Samples) -> list[dict[str, Any]]:
    """One record per metric and contestant: median, min, max, number of runs."""
    return [
        {"metric": metric, "contestant": name, **summarize(rounds).as_dict()}
        for metric, contestants in samples.items()
        for name, rounds in contestants.items()
    ]


def judge_speed(bar: SpeedBar, samples: Samples) -> dict[str, Any]:
    """Speed of the subject over each peer that ran; ``met`` is None where none did."""
    contestants = samples.get(bar.metric, {})
    ratios = {
        peer: paired_speedup(contestants[bar.subject], contestants[peer])
        for peer in bar.peers
        if peer in contestants and bar.subject in contestants
    }
    worst = min(ratios.values(), default=None)
    return {
        "metric": bar.metric,
        "subject": bar.subject,
        "speedup_over": ratios,
        "at_least": bar.at_least,
        "met": None if worst is None else worst >= bar.at_least,
    }


def judge_limit(bar: LimitBar, samples: Samples) -> dict[str, Any]:
    """The subject's median against its limit; ``met`` is None where it did not run."""
    rounds = samples.get(bar.metric, {}).get(bar.subject)
    value = summarize(rounds).median if rounds else None
    return {
        "metric": bar.metric,
        "subject": bar.subject,
        "value": value,
        "at_most": bar.at_most,
        "met": None if value is None else value <= bar.at_most,
    }


def judge(bars: Sequence[SpeedBar | LimitBar], samples: Samples) -> list[dict[str, Any]]:
    """All bars of a case, in order."""
    return [
        judge_speed(bar, samples) if isinstance(bar, SpeedBar) else judge_limit(bar, samples) for bar in bars
    ]
