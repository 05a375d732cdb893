"""What a parity check found: frozen, comparable, and stored as JSON (``parity.json``).

Token and channel indices count from 0; ``token`` is a position within its sequence and ``channel`` the
position along the last axis (for logits: the token id). KL divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from q2export.compare.report.stored import StoredReport
from q2export.contracts.profile import ParityThresholds


@dataclass(frozen=True)
class Element:
    """One element of a ``[tokens, width]`` tensor, seen from both sides."""

    token: int
    channel: int
    reference: float
    engine: float


@dataclass(frozen=True)
class NonFinite:
    """The first NaN or infinity of a tensor, and how many there are."""

    token: int
    channel: int
    value: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """Absolute logit errors in decimal bins.

    ``counts[i]`` errors lie in ``[10**(first + i / per_decade), 10**(first + (i + 1) / per_decade))``; the
    outer bins also take what lies beyond them. ``zeros`` errors are exactly 0.
    """

    first: int
    per_decade: int
    counts: tuple[int, ...]
    zeros: int


@dataclass(frozen=True)
class LogitMetrics:
    """Differences of ``[tokens, vocab]`` logits; definitions in :mod:`.metrics`."""

    tokens: int
    reference_rms: float
    max_abs_error: float
    mean_abs_error: float
    max_rel_error: float
    mean_rel_error: float
    min_cosine: float
    max_kl: float
    mean_kl: float
    top1_matches: int
    top1_ties: int
    worst: Element
    histogram: Histogram

    @property
    def top1_agreement(self) -> float:
        """Fraction of positions, 0 to 1, at which both sides rank the same token first."""
        return self.top1_matches / self.tokens

    @property
    def top1_agreement_with_ties(self) -> float:
        """Like :attr:`top1_agreement`, near-ties counted as agreement. This one is judged."""
        return (self.top1_matches + self.top1_ties) / self.tokens


@dataclass(frozen=True)
class GreedyDifference:
    """A generated token the reference would not have chosen.

    Attributes:
        step: index among the generated tokens.
        reference_token: the reference's choice, ``engine_token`` the engine's; with their texts, if known.
        margin: reference logit of its own choice minus that of the engine's choice, never negative.
        tie: whether rounding explains it: the margin is within twice the allowed logit error, or experts tie.
        prefill_agrees: the engine's own scoring of the same tokens makes the reference's choice, so the
            fault lies in decoding through the KV cache.
    """

    step: int
    reference_token: int
    engine_token: int
    reference_text: str
    engine_text: str
    margin: float
    tie: bool
    prefill_agrees: bool


@dataclass(frozen=True)
class GreedyResult:
    """Greedy generation of one prompt.

    Attributes:
        generated: number of generated tokens.
        differences: how many are not the reference's choice, without ties; ``first_difference`` the first.
        ties: how many are near-ties; ``first_tie`` the first.
    """

    generated: int
    differences: int
    ties: int
    first_difference: GreedyDifference | None
    first_tie: GreedyDifference | None

    @property
    def first(self) -> GreedyDifference | None:
        """Where greedy output first differs, for whatever reason."""
        found = [item for item in (self.first_difference, self.first_tie) if item]
        return min(found, key=lambda item: item.step, default=None)


@dataclass(frozen=True)
class SequenceResult:
    """One compared sequence.

    Attributes:
        name: ``prompt 0``, ``prompt 1``, ... or ``text``.
        prompt_tokens: length of the prompt (of the whole text); generated tokens follow it.
        tokens: length of the sequence as scored.
        prompt_text: the beginning of the prompt; ``generated_text`` what followed. Empty without a tokenizer.
        metrics: None if the engine's logits are not finite.
        greedy: None for the text.
        reference_perplexity: exp of the mean negative log-likelihood; likewise ``engine_perplexity``. Only
            for the text.
    """

    name: str
    prompt_tokens: int
    tokens: int
    prompt_text: str
    generated_text: str
    metrics: LogitMetrics | None
    non_finite: NonFinite | None
    greedy: GreedyResult | None
    reference_perplexity: float | None
    engine_perplexity: float | None


@dataclass(frozen=True)
class ActivationDifference:
    """How far one captured tensor is from the reference.

    Attributes:
        name: module path; ``layer`` its decoder layer or None; ``op`` what computes it.
        max_abs, mean_abs: absolute error; None, like the two below, if the engine's values are not finite.
        max_error, mean_error: error relative to the scale of the tensor, see :mod:`.activation_differences`.
        reference_rms: root mean square of the reference tensor.
        tolerance: the largest ``max_error`` that rounding explains here, given the error of the inputs.
        worst: the element with the largest relative error.
    """

    name: str
    layer: int | None
    op: str
    max_abs: float | None
    mean_abs: float | None
    max_error: float | None
    mean_error: float | None
    reference_rms: float
    tolerance: float
    worst: Element | None
    non_finite: NonFinite | None

    @property
    def diverges(self) -> bool:
        """Whether the error is more than rounding explains."""
        return self.max_error is None or self.max_error > self.tolerance


@dataclass(frozen=True)
class Divergence:
    """Where the engine first leaves the reference.

    Attributes:
        layer: decoder layer, or None for embedding, final norm and head.
        activation: the first diverging tensor; its ``name`` and ``op`` say which.
        gradual: no single step exceeds its tolerance; this is the largest step of a slow drift.
    """

    layer: int | None
    activation: ActivationDifference
    gradual: bool


@dataclass(frozen=True)
class Curve:
    """Error per stage (embedding, each layer, final norm, head) on the first ``tokens`` tokens of
    ``sequence``, those up to the largest logit error."""

    sequence: str
    tokens: int
    stages: tuple[ActivationDifference, ...]


@dataclass(frozen=True)
class RunInfo:
    """What was compared, for people: names, the command that repeats it, versions of what took part."""

    engine: str
    model: str
    command: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class ParityReport(StoredReport):
    """The outcome of one parity check.

    Attributes:
        thresholds: of the profile; ``limits`` are those that were applied.
        logit_scale: how much larger the reference's logits are than ordinary ones, at least 1.
        router_ties: choices among experts that tie in the reference, which took the engine's there.
        failures: what broke a limit, one sentence each; empty means passed.
        warnings: what deserves attention but broke no limit.
        total: all sequences together; None if any engine logit is not finite.
        curve: None if the engine exposes no intermediate tensors.
        divergence: only searched for after a failure.
    """

    SCHEMA_VERSION: ClassVar[int] = 2
    LABEL: ClassVar[str] = "parity report"

    info: RunInfo
    thresholds: ParityThresholds
    logit_scale: float
    router_ties: int
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    sequences: tuple[SequenceResult, ...]
    total: LogitMetrics | None
    curve: Curve | None
    divergence: Divergence | None

    @property
    def limits(self) -> ParityThresholds:
        """The thresholds for logits of this size."""
        return scaled_limits(self.thresholds, self.logit_scale)


def scaled_limits(thresholds: ParityThresholds, logit_scale: float) -> ParityThresholds:
    """The thresholds for logits that are larger than ordinary ones.

    Rounding errors grow with the logits, and with them the divergence they cause.
    """
    return replace(
        thresholds,
        max_abs_logit_error=thresholds.max_abs_logit_error * logit_scale,
        max_kl_divergence=thresholds.max_kl_divergence * logit_scale,
    )
