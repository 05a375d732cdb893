"""Where the time of an ONNX Runtime engine goes, operator by operator, from ONNX Runtime's own profiler.

The profiler writes one event per node, in microseconds, and takes some of the time itself: shares are to be
trusted, speeds come from ``q2export bench`` without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from q2export.errors import PackageError
from q2export.runtime.backends.base import Int64Array
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from q2export.runtime.op_trace import PhaseProfile, Trace
from q2export.runtime.prefill import prefill


@dataclass(frozen=True)
class OperatorProfile:
    """Prefill, per prompt or batch of prompts, and decode, per token."""

    prefill: PhaseProfile
    decode: PhaseProfile


def profile_operators(
    backend: OnnxRuntimeBackend, prompts: Int64Array, new_tokens: int, *, repeat: int, warmup: int
) -> OperatorProfile:
    """Generate greedily and take the profiler's account of it.

    Args:
        backend: opened with ``profile``; its profiling ends.
        prompts: ``[batch, tokens]``.
        new_tokens: of each prompt; the first comes from the prefill, at least 2.
        repeat: times everything is done and counted.
        warmup: times it is done before that.

    Raises:
        GenerationError: batch or tokens are more than the engine was built for.
        PackageError: the profiler dropped events, for there were too many.
    """
    phases: tuple[list[range], list[range]] = ([], [])
    for turn in range(warmup + repeat):
        for number, made in enumerate(_generate(backend, prompts, new_tokens)):
            if turn >= warmup:
                phases[min(number, 1)].append(made)
    path = backend.end_profiling()
    trace = Trace.read(path)
    path.unlink()
    if len(trace.calls) != backend.calls:
        raise PackageError(
            f"ONNX Runtime's profiler recorded {len(trace.calls)} of {backend.calls} calls, its trace is "
            "full; profile fewer tokens or fewer runs"
        )
    return OperatorProfile(trace.phase(phases[0]), trace.phase(phases[1]))


def _generate(backend: OnnxRuntimeBackend, prompts: Int64Array, new_tokens: int) -> Iterator[range]:
    """The calls of the prefill, then of each decoded token."""
    batch, length = prompts.shape
    cache = backend.new_cache(batch, length + new_tokens)
    start = backend.calls
    logits = prefill(backend, cache, list(prompts))
    yield range(start, backend.calls)
    ones, first = np.ones(batch, np.int64), np.zeros((batch, 1), np.int64)
    for step in range(new_tokens - 1):
        start = backend.calls
        chosen = logits.argmax(axis=-1)[:, None]
        logits = backend.forward(cache, chosen, ones * (length + step), ones, first)[:, 0]
        yield range(start, backend.calls)
