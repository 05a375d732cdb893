"""Choosing the next token from its logits.

The order is that of transformers' logits processors (``GenerationMixin._get_logits_processor``): repetition
penalty, tokens not allowed yet, temperature, top_k, top_p, min_p. Here top_k comes before the temperature,
which changes nothing (dividing by a positive number keeps the order) and leaves few numbers to work on; from
there on everything is float64. Cost with a vocabulary of 151,936: one argmax when greedy, one partition with
top_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.options import GenerationOptions

Float64Array = npt.NDArray[np.float64]

_FIRST_GUESS = 256  # tokens sorted first when looking for the top_p set in a whole vocabulary


def check_finite(logits: Float32Array, where: Callable[[int], str]) -> None:
    """Refuse logits that no token may be chosen from.

    Args:
        logits: ``[rows, vocab]``.
        where: names a row in the message.

    Raises:
        GenerationError: NaN or infinity, with its place.
    """
    # One pass without a temporary; a sum is finite unless something in it is not (or, harmlessly, overflows).
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(logits.sum()):
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
        weights = np.exp((scores - scores.max()) / options.temperature)
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
    wanted = top_p * weights.sum()
    largest: Int64Array = np.arange(weights.size)
    count = _FIRST_GUESS
    while count < weights.size:  # most of a vocabulary has next to no weight: do not sort it
        largest = np.sort(np.argpartition(weights, weights.size - count)[weights.size - count :])
        if weights[largest].sum() >= wanted:
            break
        count *= 8
    else:
        largest = np.arange(weights.size)
    order = largest[np.argsort(-weights[largest], kind="stable")]
    before = np.concatenate(([0.0], np.cumsum(weights[order])[:-1]))
    return order[: int(np.searchsorted(before, wanted, side="left"))]


class Sampler:
    """Chooses the tokens of one sequence, remembering what the repetition penalty and the random draws need.

    Args:
        options: how to choose.
        prompt: ``[tokens]`` ids of the prompt.
        seed: of this sequence's own random numbers; None takes entropy from the system.
        forbidden_first: tokens that must not come among the first ``min_new_tokens`` ones.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt: Int64Array,
        seed: int | None = None,
        forbidden_first: Sequence[int] = (),
    ) -> None:
        self._options = options
        self._seen = set(prompt.tolist()) if options.repetition_penalty != 1 else set()
        self._penalized = np.fromiter(self._seen, np.int64, len(self._seen))
        self._random = None if options.greedy else np.random.default_rng(seed)
        self._forbidden = np.array(forbidden_first, np.int64)
        self._minimum = options.min_new_tokens if len(forbidden_first) else 0
        self._chosen = 0

    def choose(self, logits: Float32Array) -> int:
        """The next token. ``logits [vocab]`` must be finite; they are not changed."""
        penalize = self._options.repetition_penalty != 1
        if penalize or self._chosen < self._minimum:
            logits = logits.copy()
        if penalize:
            apply_repetition_penalty(logits, self._penalized, self._options.repetition_penalty)
        if self._chosen < self._minimum:
            logits[self._forbidden] = -np.inf
        token = self._draw(logits)
        self._chosen += 1
        if penalize and token not in self._seen:
            self._seen.add(token)
            self._penalized = np.append(self._penalized, token)
        return token

    def _draw(self, logits: Float32Array) -> int:
        if self._random is None:
            return int(logits.argmax())
        token_ids, weights = candidates(logits, self._options)
        cumulative = weights.cumsum()
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(token_ids[min(int(place), token_ids.size - 1)])
