"""Differences of logits, accumulated in float64 over blocks of rows, so that memory stays bounded.

Definitions, with ``r`` the reference, ``e`` the engine, ``[tokens, vocab]``, row by row:

- absolute error ``|e - r|``;
- relative error ``|e - r| / max(|r|, rms(row of r))``: a logit near zero is no smaller than its row;
- cosine of the angle between the two rows;
- KL divergence ``sum(softmax(r) * (log_softmax(r) - log_softmax(e)))`` in nats;
- top-1 match: the same token ranks first. A mismatch is a tie if the reference prefers its own choice by no
  more than ``tie_margin``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from q2export.compare.verify.results import Element, Histogram, LogitMetrics, NonFinite
from q2export.errors import ParityError
from q2export.runtime.backends.base import Float32Array

Float64Array = npt.NDArray[np.float64]

ORDINARY_SPREAD = 10.0
"""Standard deviation of logits up to which limits hold as they are; that of Qwen2 models is about 3."""

BLOCK_ELEMENTS = 1 << 21  # 16 MiB per float64 temporary
HISTOGRAM_FIRST_DECADE = -10
HISTOGRAM_LAST_DECADE = 3
HISTOGRAM_BINS_PER_DECADE = 4


def first_non_finite(values: Float32Array) -> NonFinite | None:
    """The first NaN or infinity of ``[tokens, width]`` in row order, or None."""
    found: NonFinite | None = None
    count = 0
    for start, rows in row_blocks(values):
        bad = ~np.isfinite(rows)
        in_block = int(bad.sum())
        if in_block and found is None:
            row, channel = np.unravel_index(int(bad.argmax()), bad.shape)
            value = str(float(rows[row, channel]))
            found = NonFinite(start + int(row), int(channel), value, 0)
        count += in_block
    return None if found is None else NonFinite(found.token, found.channel, found.value, count)


def require_same_shape(reference: Float32Array, engine: Float32Array, what: str) -> None:
    """Check that both sides are ``[tokens, width]`` of equal extents.

    Raises:
        ParityError: naming ``what`` and both shapes.
    """
    if reference.ndim != 2 or reference.shape != engine.shape:
        raise ParityError(
            f"{what}: the reference has shape {list(reference.shape)} and the engine {list(engine.shape)}; "
            f"expected equal [tokens, width]; was the engine built from this model?"
        )


def require_finite(values: Float32Array, what: str) -> None:
    """Check that ``[tokens, width]`` has no NaN or infinity.

    Raises:
        ParityError: naming ``what``, the position and the value.
    """
    if bad := first_non_finite(values):
        raise ParityError(
            f"{what}: {bad.value} at token {bad.token}, channel {bad.channel} "
            f"({bad.count} values are not finite); expected finite values"
        )


def logit_scale(logits: Sequence[Float32Array]) -> float:
    """How much larger logits are than ordinary ones, at least 1: their spread over :data:`ORDINARY_SPREAD`.

    The spread is the root mean square of the distance from the mean of the position; a constant added to all
    logits, which changes no probability, is not part of it.

    Args:
        logits: per sequence, finite, ``[tokens, vocab]``.
    """
    total, count = 0.0, 0
    for sequence in logits:
        for _, rows in row_blocks(sequence):
            wide = rows.astype(np.float64)
            total += float(np.square(wide - wide.mean(axis=1, keepdims=True)).sum())
            count += wide.size
    return max(1.0, math.sqrt(total / count) / ORDINARY_SPREAD)


def measure_logits(reference: Float32Array, engine: Float32Array, tie_margin: float) -> LogitMetrics:
    """All metrics of one sequence.

    Args:
        reference: ``[tokens, vocab]``, at least one token.
        engine: ``[tokens, vocab]``.
        tie_margin: reference logit gap up to which a top-1 mismatch is a tie.

    Raises:
        ParityError: if shapes differ or a value is not finite.
    """
    require_same_shape(reference, engine, "logits")
    require_finite(reference, "reference logits")
    require_finite(engine, "engine logits")
    parts = []
    for start, rows in row_blocks(reference):
        other = engine[start : start + len(rows)].astype(np.float64)
        parts.append(_measure_block(rows.astype(np.float64), other, tie_margin, start))
    return merge_metrics(parts)


def merge_metrics(parts: Sequence[LogitMetrics]) -> LogitMetrics:
    """Combine metrics of several sequences (at least one) of one vocabulary; means are weighted by tokens.

    ``worst`` keeps its position within its own sequence.
    """
    tokens = sum(part.tokens for part in parts)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(v * part.tokens for v, part in zip(values, parts, strict=True)) / tokens

    return LogitMetrics(
        tokens=tokens,
        reference_rms=math.sqrt(mean([part.reference_rms**2 for part in parts])),
        max_abs_error=max(part.max_abs_error for part in parts),
        mean_abs_error=mean([part.mean_abs_error for part in parts]),
        max_rel_error=max(part.max_rel_error for part in parts),
        mean_rel_error=mean([part.mean_rel_error for part in parts]),
        min_cosine=min(part.min_cosine for part in parts),
        max_kl=max(part.max_kl for part in parts),
        mean_kl=mean([part.mean_kl for part in parts]),
        top1_matches=sum(part.top1_matches for part in parts),
        top1_ties=sum(part.top1_ties for part in parts),
        worst=max(parts, key=lambda part: part.max_abs_error).worst,
        histogram=_merge_histograms([part.histogram for part in parts]),
    )


def perplexity(logits: Float32Array, tokens: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood of ``tokens[1:]``, each predicted by the row before it.

    Saturates at exp(700), about 1e304.

    Args:
        logits: ``[tokens, vocab]``.
        tokens: the sequence the logits were computed for, at least two tokens.

    Raises:
        ParityError: if there are fewer than two tokens or lengths differ.
    """
    if len(tokens) < 2 or len(logits) != len(tokens):
        raise ParityError(
            f"perplexity: expected logits for each of at least 2 tokens, found {len(logits)} rows "
            f"for {len(tokens)} tokens"
        )
    targets = np.asarray(tokens[1:], dtype=np.int64)
    total = 0.0
    for start, rows in row_blocks(logits[:-1]):
        block = rows.astype(np.float64)
        chosen = block[np.arange(len(block)), targets[start : start + len(block)]]
        total += float((_log_sum_exp(block)[:, 0] - chosen).sum())
    return math.exp(min(total / len(targets), 700.0))


def row_blocks(values: Float32Array) -> Iterator[tuple[int, Float32Array]]:
    """Row blocks of ``[tokens, width]`` with the index of their first row."""
    step = max(1, BLOCK_ELEMENTS // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def _measure_block(
    reference: Float64Array, engine: Float64Array, tie_margin: float, start: int
) -> LogitMetrics:
    tokens = len(reference)
    rows = np.arange(tokens)
    error = np.abs(engine - reference)
    square_sum = np.square(reference).sum(axis=1, keepdims=True)
    scale = np.maximum(np.abs(reference), np.sqrt(square_sum / reference.shape[1]))
    relative = np.divide(error, scale, out=error.copy(), where=scale > 0)
    kl = _kl_divergence(reference, engine)
    reference_top, engine_top = reference.argmax(axis=1), engine.argmax(axis=1)
    margin = reference[rows, reference_top] - reference[rows, engine_top]
    mismatch = reference_top != engine_top
    token, channel = (int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    values = float(reference[token, channel]), float(engine[token, channel])
    return LogitMetrics(
        tokens=tokens,
        reference_rms=math.sqrt(float(square_sum.sum()) / reference.size),
        max_abs_error=float(error[token, channel]),
        mean_abs_error=float(error.mean()),
        max_rel_error=float(relative.max()),
        mean_rel_error=float(relative.mean()),
        min_cosine=float(_cosine(reference, engine).min()),
        max_kl=float(kl.max()),
        mean_kl=float(kl.mean()),
        top1_matches=tokens - int(mismatch.sum()),
        top1_ties=int((mismatch & (margin <= tie_margin)).sum()),
        worst=Element(start + token, channel, *values),
        histogram=_histogram(error),
    )


def _log_sum_exp(rows: Float64Array) -> Float64Array:
    top = rows.max(axis=1, keepdims=True)
    result: Float64Array = top + np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    return result


def _kl_divergence(reference: Float64Array, engine: Float64Array) -> Float64Array:
    log_p = reference - _log_sum_exp(reference)
    log_q = engine - _log_sum_exp(engine)
    # Rounding can make the divergence of equal rows -1e-17.
    result: Float64Array = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)
    return result


def _cosine(reference: Float64Array, engine: Float64Array) -> Float64Array:
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(engine, axis=1)
    equal_rows = (reference == engine).all(axis=1).astype(np.float64)  # decides rows of zeros
    dots = np.einsum("tv,tv->t", reference, engine)
    result: Float64Array = np.clip(np.divide(dots, norms, out=equal_rows, where=norms > 0), -1.0, 1.0)
    return result


def _histogram(error: Float64Array) -> Histogram:
    bins = (HISTOGRAM_LAST_DECADE - HISTOGRAM_FIRST_DECADE) * HISTOGRAM_BINS_PER_DECADE
    positive = error[error > 0]
    index = np.floor((np.log10(positive) - HISTOGRAM_FIRST_DECADE) * HISTOGRAM_BINS_PER_DECADE)
    counts = np.bincount(np.clip(index, 0, bins - 1).astype(np.int64), minlength=bins)
    return Histogram(
        first=HISTOGRAM_FIRST_DECADE,
        per_decade=HISTOGRAM_BINS_PER_DECADE,
        counts=tuple(int(count) for count in counts),
        zeros=error.size - positive.size,
    )


def _merge_histograms(parts: Sequence[Histogram]) -> Histogram:
    counts = np.sum([part.counts for part in parts], axis=0)
    return Histogram(
        first=parts[0].first,
        per_decade=parts[0].per_decade,
        counts=tuple(int(count) for count in counts),
        zeros=sum(part.zeros for part in parts),
    )
