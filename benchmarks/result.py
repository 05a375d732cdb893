"""What a case gives, the judgement of its bars, and the JSON it is stored as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.case import Case, GainBar, GenerationCase, LimitBar, SpeedBar
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


def judge_gain(bar: GainBar, batch: int, samples: Samples) -> dict[str, Any]:
    """Tokens/s of the batch over those of one sequence, of the subject itself."""
    one, many = (samples.get(metric, {}).get(bar.subject) for metric in ("decode", f"decode-{batch}"))
    ratio = batch * paired_speedup(many, one) if one and many else None
    return {
        "metric": f"decode-{batch}",
        "subject": bar.subject,
        "speedup_over": {} if ratio is None else {f"{batch} x one sequence": ratio},
        "at_least": bar.at_least,
        "met": None if ratio is None else ratio >= bar.at_least,
    }


def judge(case: Case, samples: Samples) -> list[dict[str, Any]]:
    """All bars of a case."""
    verdicts = [judge_speed(bar, samples) for bar in case.speed_bars]
    verdicts += [judge_limit(bar, samples) for bar in case.limit_bars]
    if isinstance(case, GenerationCase) and case.batch is not None:
        verdicts += [judge_gain(bar, case.batch, samples) for bar in case.gain_bars]
    return verdicts
