"""Logits of two models on one text, window by window: KL divergence, top-1 agreement, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from q2export.compare.quality.results import TextQuality
from q2export.compare.verify.metrics import measure_logits, merge_metrics, perplexity
from q2export.compare.verify.results import LogitMetrics
from q2export.errors import ParityError
from q2export.runtime.backends.base import Float32Array

WINDOW_TOKENS = 256
"""Tokens of one window: long enough for context, short enough that two windows of logits fit in memory."""


def windows_of(tokens: Sequence[int], at_most: int, length: int = WINDOW_TOKENS) -> list[list[int]]:
    """Cut the first ``at_most`` tokens of a text into pieces of at least two tokens each.

    Raises:
        ParityError: the text has fewer than two tokens, or a window would.
    """
    if length < 2:
        raise ParityError(f"a window of {length} tokens predicts nothing; expected at least 2")
    used = list(tokens[:at_most])
    found = [used[start : start + length] for start in range(0, len(used), length)]
    if found and len(found[-1]) < 2:
        found.pop()
    if not found:
        raise ParityError(f"the text has {len(tokens)} tokens; perplexity needs at least 2")
    return found


class TextComparison:
    """Takes the logits of one window after another and keeps figures only."""

    def __init__(self) -> None:
        self._metrics: list[LogitMetrics] = []
        self._predictions = 0
        self._log_reference = 0.0
        self._log_quantized = 0.0

    def add(self, tokens: Sequence[int], reference: Float32Array, quantized: Float32Array) -> None:
        """Compare the logits ``[tokens, vocab]`` of one window.

        Raises:
            ParityError: shapes differ, or a value is not finite.
        """
        self._metrics.append(measure_logits(reference, quantized, tie_margin=0.0))
        predictions = len(tokens) - 1
        self._predictions += predictions
        self._log_reference += predictions * math.log(perplexity(reference, tokens))
        self._log_quantized += predictions * math.log(perplexity(quantized, tokens))

    def result(self, name: str) -> TextQuality:
        """Figures of all windows; ``name`` is that of the text."""
        total = merge_metrics(self._metrics)
        return TextQuality(
            name=name,
            windows=len(self._metrics),
            tokens=total.tokens,
            reference_perplexity=math.exp(self._log_reference / self._predictions),
            quantized_perplexity=math.exp(self._log_quantized / self._predictions),
            mean_kl=total.mean_kl,
            max_kl=total.max_kl,
            top1_agreement=total.top1_agreement,
        )
