"""Log probabilities of a prompt's own tokens: ``echo`` with ``logprobs``, as evaluation harnesses ask."""

from __future__ import annotations

from q2export.runtime.logprobs import token_logprobs
from q2export.runtime.results import TokenLogprobs
from q2export.runtime.server.service import ServedModel


def prompt_logprobs(model: ServedModel, prompt: list[int], top: int) -> list[TokenLogprobs | None]:
    """For each token of a prompt, the logarithm of its probability after those before it; None for the first.

    Raises:
        GenerationError: the prompt is longer than the engine's capacity, or has ids outside the vocabulary.
    """
    found: list[TokenLogprobs | None] = [None]
    if len(prompt) == 1:
        return found
    for piece in model.engine.score_pieces(prompt[:-1]):
        start = len(found)
        tokens = prompt[start : start + len(piece)]
        found += [token_logprobs(row, token, top) for row, token in zip(piece, tokens, strict=True)]
    return found
