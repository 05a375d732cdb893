"""Logits of two models on one text, window by window: KL divergence, top-1 agreement, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from q2export.compare.quality.results import TextQuality
from q2export.compare.verify.metrics import measure_logits, merge_metrics, perplexity
from q2export.compare.verify.results import LogitMetrics
from q2export.runtime.backends.base import Float32Array


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
