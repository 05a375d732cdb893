"""Greedy identity without running the reference token by token.

The engine generates; the reference is teacher-forced over prompt and generated tokens in one pass. If the
reference's argmax before every generated token is that token, both would have generated the same text. After
a difference the comparison goes on along the engine's text, so every generated token is judged.

A difference is a *tie* if the reference prefers its own choice by at most twice the allowed logit error: an
engine within that limit may raise one logit and lower the other by it, and so swap them. Behind a token
whose experts tie, a difference is a tie, too, if the engine's own scoring agrees with the reference. Ties are
counted and reported, and do not fail the check; an engine beyond the limit fails by its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from q2export.compare.verify.results import GreedyDifference, GreedyResult
from q2export.errors import ParityError
from q2export.runtime.backends.base import Float32Array

Decode = Callable[[Sequence[int]], str]


def check_greedy(
    tokens: Sequence[int],
    prompt_tokens: int,
    reference: Float32Array,
    engine: Float32Array,
    tie_margin: float,
    decode: Decode,
    *,
    experts_tie_from: int | None = None,
) -> GreedyResult:
    """Judge every generated token.

    Args:
        tokens: prompt and generated tokens.
        prompt_tokens: how many of them are the prompt, at least 1.
        reference: logits of ``tokens``, ``[tokens, vocab]``.
        engine: the engine's own scoring of ``tokens``, ``[tokens, vocab]``; may hold NaN.
        tie_margin: largest reference logit gap that is a tie.
        decode: from token ids to text.
        experts_tie_from: index of the first token whose experts tie (:mod:`.router_ties`). Scoring settled
            them one way; a decode step may settle them another. None where there is none.

    Raises:
        ParityError: if a generated token is outside the vocabulary.
    """
    differences: list[GreedyDifference] = []
    generated = tokens[prompt_tokens:]
    for step, token in enumerate(generated):
        expected, scored = reference[prompt_tokens - 1 + step], engine[prompt_tokens - 1 + step]
        if not 0 <= token < len(expected):
            raise ParityError(
                f"greedy token {step} of the engine is {token}, expected 0 to {len(expected) - 1}: "
                f"the vocabularies differ; was the engine built from this model?"
            )
        choice = int(expected.argmax())
        if token == choice:
            continue
        margin = float(expected[choice]) - float(expected[token])
        prefill_agrees = bool(np.isfinite(scored).all()) and int(scored.argmax()) == choice
        behind_tie = experts_tie_from is not None and prompt_tokens - 1 + step >= experts_tie_from
        differences.append(
            GreedyDifference(
                step=step,
                reference_token=choice,
                engine_token=token,
                reference_text=decode([choice]),
                engine_text=decode([token]),
                margin=margin,
                tie=margin <= tie_margin or (behind_tie and prefill_agrees),
                prefill_agrees=prefill_agrees,
            )
        )
    wrong, ties = ([one for one in differences if one.tie is tie] for tie in (False, True))
    return GreedyResult(
        len(generated), len(wrong), len(ties), next(iter(wrong), None), next(iter(ties), None)
    )
