"""Choosing the next token from its logits.

First a processor may mask logits, then come biases. From there on the order is that of transformers' logits
processors (``GenerationMixin._get_logits_processor``): repetition penalty (and behind it the presence and
frequency penalties), tokens not allowed yet, temperature, top_k, top_p, min_p. Here top_k comes before the
temperature, which changes nothing (dividing by a positive number keeps the order) and leaves few numbers to
work on; from there on everything is float64. Cost with a vocabulary of 151,936: one argmax when greedy, one
partition with top_k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.exponential import exponential
from q2export.runtime.options import GenerationOptions

Float64Array = npt.NDArray[np.float64]

_FIRST_GUESS = 256  # tokens sorted first when looking for the top_p set in a whole vocabulary


def all_finite(logits: Float32Array) -> bool:
    """Whether no logit is NaN or infinite. False may be wrong: then :func:`check_finite` knows."""
    # One pass without a temporary; a sum is finite unless something in it is not (or, harmlessly, overflows).
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(logits.sum()))


def check_finite(logits: Float32Array, where: Callable[[int], str]) -> None:
    """Refuse logits that no token may be chosen from.

    Args:
        logits: ``[rows, vocab]``.
        where: names a row in the message.

    Raises:
        GenerationError: NaN or infinity, with its place.
    """
    if all_finite(logits):
        return
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, token = (int(i) for i in bad[0])
        raise GenerationError(
            f"the engine returned {logits[row, token]} as the logit of token {token} {where(row)} "
            f"({len(bad)} of {logits.size} logits are not finite); compare the engine with its checkpoint: "
            "q2export verify"
        )


def apply_repetition_penalty(logits: Float32Array, token_ids: Int64Array, penalty: float) -> None:
    """Divide positive logits of ``token_ids`` by ``penalty`` and multiply negative ones, in place.

    Source: Keskar et al. 2019, arXiv 1909.05858, as in transformers' ``RepetitionPenaltyLogitsProcessor``.

    Args:
        logits: ``[vocab]``.
        token_ids: tokens of the prompt and of the text so far; one that occurs twice counts once.
        penalty: above 0; 1 does nothing.
    """
    scores = logits[token_ids]
    factor = np.float32(penalty)
    logits[token_ids] = np.where(scores < 0, scores * factor, scores / factor)


def apply_count_penalties(
    logits: Float32Array, counts: Mapping[int, int], presence: float, frequency: float
) -> None:
    """Take ``presence + count * frequency`` from the logit of each token of ``counts``, in place.

    Source: OpenAI's API reference, "Frequency and presence penalties". Only generated tokens count.

    Args:
        logits: ``[vocab]``.
        counts: how often each token was generated, at least once.
        presence, frequency: the penalties; negative ones make repetition likelier.
    """
    token_ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    logits[token_ids] -= np.float32(presence) + times * np.float32(frequency)


class LogitsProcessor(Protocol):
    """What decides which tokens may come, such as a grammar. One serves one sequence."""

    @property
    def finished(self) -> bool:
        """Whether the text must end with the token that was accepted last."""

    def process(self, logits: Float32Array) -> None:
        """Change the logits ``[vocab]`` of the next token in place; -inf forbids one."""

    def accept(self, token_id: int) -> None:
        """The token that was chosen."""


def candidates(logits: Float32Array, options: GenerationOptions) -> tuple[Int64Array, Float64Array]:
    """The tokens that may be drawn, and their weights (probabilities up to a common factor).

    Args:
        logits: ``[vocab]`` after penalties; tokens not allowed are -inf.
        options: ``temperature`` above 0.

    Returns:
        token ids ``[n]`` and weights ``[n]``, the largest weight being 1.
    """
    token_ids = _top_k(logits, options.top_k)
    scores = logits[token_ids].astype(np.float64)
    # With the maximum subtracted first, the likeliest weighs 1 and the others at worst 0, at any temperature.
    with np.errstate(over="ignore"):
        weights = exponential((scores - scores.max()) / options.temperature)
    if options.top_p < 1:
        kept = _top_p(weights, options.top_p)
        token_ids, weights = token_ids[kept], weights[kept]
    if options.min_p > 0:
        kept = np.flatnonzero(weights >= options.min_p)
        token_ids, weights = token_ids[kept], weights[kept]
    return token_ids, weights


def _top_k(logits: Float32Array, top_k: int) -> Int64Array:
    """Ids of the ``top_k`` largest logits and of those that equal the smallest of them, ascending."""
    if not 0 < top_k < logits.size:
        return np.arange(logits.size)
    smallest = np.partition(logits, logits.size - top_k)[logits.size - top_k]
    return np.flatnonzero(logits >= smallest)


def _top_p(weights: Float64Array, top_p: float) -> Int64Array:
    """Places of the fewest largest weights that make up ``top_p`` of the sum; the largest first.

    A weight stays if the larger ones together are less than ``top_p`` of the sum.
    """
    wanted = top_p * weights.cumsum()[-1]
    largest: Int64Array = np.arange(weights.size)
    count = _FIRST_GUESS
    while count < weights.size:  # most of a vocabulary has next to no weight: do not sort it
        smallest = np.partition(weights, weights.size - count)[weights.size - count]
        largest = np.flatnonzero(weights >= smallest)
        if weights[largest].sum() >= wanted:
            break
        count *= 8
    else:
        largest = np.arange(weights.size)
    order = largest[np.argsort(-weights[largest], kind="stable")]
    sums = np.cumsum(weights[order])
    return order[: int(np.searchsorted(sums, wanted, side="left")) + 1]


class Sampler:
    """Chooses the tokens of one sequence, remembering what penalties and the random draws need.

    Args:
        options: how to choose; ``logit_bias`` is of tokens of the vocabulary.
        prompt: ``[tokens]`` ids of the prompt.
        seed: of this sequence's own random numbers; None takes entropy from the system.
        forbidden_first: tokens that must not come among the first ``min_new_tokens`` ones.
        processor: sees the logits first, and every token chosen.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt: Int64Array,
        seed: int | None = None,
        forbidden_first: Sequence[int] = (),
        processor: LogitsProcessor | None = None,
    ) -> None:
        self._options = options
        self._processor = processor
        self._seen = set(prompt.tolist()) if options.repetition_penalty != 1 else set()
        self._repeated = np.fromiter(self._seen, np.int64, len(self._seen))
        self._counts: dict[int, int] | None = (
            {} if options.presence_penalty or options.frequency_penalty else None
        )
        biases = options.logit_bias or {}
        self._biased = np.fromiter(biases.keys(), np.int64, len(biases))
        self._biases = np.fromiter(biases.values(), np.float32, len(biases))
        self._random = None if options.greedy else np.random.default_rng(seed)
        self._forbidden = np.array(forbidden_first, np.int64)
        self._minimum = options.min_new_tokens if len(forbidden_first) else 0
        self._chosen = 0

    @property
    def finished(self) -> bool:
        """Whether the processor ends the text here."""
        return self._processor is not None and self._processor.finished

    def choose(self, logits: Float32Array) -> int:
        """The next token. ``logits [vocab]`` must be finite; they are not changed.

        Raises:
            GenerationError: the processor fails, or forbids every token.
        """
        token = self._draw(self._penalized(logits))
        self._chosen += 1
        if self._options.repetition_penalty != 1 and token not in self._seen:
            self._seen.add(token)
            self._repeated = np.append(self._repeated, token)
        if self._counts is not None:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._processor is not None:
            with _processing():
                self._processor.accept(token)
        return token

    def _penalized(self, logits: Float32Array) -> Float32Array:
        """The logits to draw from: as they are, or a copy."""
        penalty, early = self._options.repetition_penalty, self._chosen < self._minimum
        changes = self._processor or len(self._biased) or penalty != 1 or self._counts or early
        if not changes:
            return logits
        logits = logits.copy()
        if self._processor is not None:
            with _processing():
                self._processor.process(logits)
        logits[self._biased] += self._biases
        if penalty != 1:
            apply_repetition_penalty(logits, self._repeated, penalty)
        if self._counts:
            apply_count_penalties(
                logits, self._counts, self._options.presence_penalty, self._options.frequency_penalty
            )
        if early:
            logits[self._forbidden] = -np.inf
        if not np.isfinite(logits.max()):
            raise GenerationError(
                "no token may come next: the processor forbids every token"
                + (" that min_new_tokens allows" if early else "")
            )
        return logits

    def _draw(self, logits: Float32Array) -> int:
        if self._random is None:
            return int(logits.argmax())
        token_ids, weights = candidates(logits, self._options)
        cumulative = weights.cumsum()
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(token_ids[min(int(place), token_ids.size - 1)])


@contextmanager
def _processing() -> Iterator[None]:
    """Whatever a processor raises ends its own generation, as a :class:`GenerationError`."""
    try:
        yield
    except Exception as error:
        raise GenerationError(f"the logits processor failed: {error!r}") from error
