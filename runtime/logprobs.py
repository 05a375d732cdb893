"""Log probabilities of the tokens of one place."""

from __future__ import annotations

import numpy as np

from q2export.runtime.backends.base import Float32Array
from q2export.runtime.results import TokenLogprobs


def token_logprobs(logits: Float32Array, token_id: int, top: int) -> TokenLogprobs:
    """The log-softmax of ``logits [vocab]`` at ``token_id`` and at the ``top`` largest logits."""
    largest = logits.max()
    total = float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))

    def logprob(token: int) -> float:
        return float(np.float64(logits[token]) - np.float64(largest)) - total

    likeliest = [] if top == 0 else _largest(logits, min(top, logits.size))
    return TokenLogprobs(token_id, logprob(token_id), tuple((each, logprob(each)) for each in likeliest))


def _largest(logits: Float32Array, count: int) -> list[int]:
    """Ids of the ``count`` largest logits, the largest first; of equals the smaller id first."""
    smallest = np.partition(logits, logits.size - count)[logits.size - count]
    ids = np.flatnonzero(logits >= smallest)
    order = np.argsort(-logits[ids], kind="stable")[:count]
    return [int(token) for token in ids[order]]
