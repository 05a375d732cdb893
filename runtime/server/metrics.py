"""``/metrics``: what gateways route by, and how long clients wait, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from q2export.runtime.scheduler import SchedulerStatistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_GAUGES: Mapping[str, tuple[str, Callable[[SchedulerStatistics], float]]] = {
    "q2export_requests_waiting": ("Texts that wait for their turn.", lambda s: s.waiting),
    "q2export_requests_running": ("Texts that are being generated.", lambda s: s.running),
    "q2export_rows": ("Most texts that are generated at once.", lambda s: s.rows),
    "q2export_kv_cache_usage_ratio": (
        "Share of the KV cache that running texts use.",
        lambda s: s.kv_tokens_used / s.kv_tokens,
    ),
    "q2export_kv_cache_retained_ratio": (
        "Share of the KV cache that holds prefixes for later.",
        lambda s: s.kv_tokens_retained / s.kv_tokens,
    ),
}
_COUNTERS: Mapping[str, tuple[str, Callable[[SchedulerStatistics], float]]] = {
    "q2export_engine_steps": ("Calls of the engine.", lambda s: s.steps),
    "q2export_prompt_tokens": ("Tokens of prompts that were computed.", lambda s: s.prompt_tokens),
    "q2export_cached_prompt_tokens": (
        "Tokens of prompts that were taken from the KV cache.",
        lambda s: s.cached_prompt_tokens,
    ),
    "q2export_prefix_hits": ("Texts whose prompt began with a cached prefix.", lambda s: s.prefix_hits),
    "q2export_generated_tokens": ("Tokens generated.", lambda s: s.generated_tokens),
    "q2export_preemptions": ("Running texts that were put off.", lambda s: s.preemptions),
    "q2export_texts_finished": ("Texts that came to their end.", lambda s: s.finished),
    "q2export_texts_failed": ("Texts that ended with an error.", lambda s: s.failed),
    "q2export_texts_cancelled": ("Texts whose client went away.", lambda s: s.cancelled),
}
Statistics = Mapping[str, Callable[[], SchedulerStatistics]]


class Metrics:
    """The metrics of one application, apart from those of others in the process.

    Args:
        statistics: of each model's scheduler, by the model's name.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_SchedulerCollector(statistics))
        self._first = self._histogram("time_to_first_token", "From a request to its first token.", _FIRST)
        self._between = self._histogram("time_between_tokens", "From a token to the next.", _BETWEEN)
        self._whole = self._histogram("request", "From a request to its last token.", _WHOLE)
        self._responses = Counter(
            "q2export_http_responses",
            "Answers by path and status.",
            ["path", "status"],
            registry=self._registry,
        )

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"q2export_{name}_seconds", meaning, ["model"], registry=self._registry, buckets=buckets
        )

    def stopwatch(self, model: str, begin: float) -> Stopwatch:
        """A stopwatch for a request that began at a time of :func:`time.perf_counter`."""
        return Stopwatch(begin, *(each.labels(model) for each in (self._first, self._between, self._whole)))

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class Stopwatch:
    """Times one request; of one thread.

    Args:
        begin: of the request.
        first: takes seconds to the first token.
        between: takes seconds between two tokens of a text.
        whole: takes seconds to the last token.
    """

    def __init__(self, begin: float, first: Histogram, between: Histogram, whole: Histogram) -> None:
        self._begin = begin
        self._first, self._between, self._whole = first, between, whole
        self._last: dict[int, float] = {}

    def token(self, text: int, seconds: float) -> None:
        """A token of one of the request's texts, at a time of :func:`time.perf_counter`."""
        if not self._last:
            self._first.observe(seconds - self._begin)
        elif text in self._last:
            self._between.observe(seconds - self._last[text])
        self._last[text] = seconds

    def end(self) -> None:
        """All texts have come to their end."""
        self._whole.observe(max(self._last.values(), default=self._begin) - self._begin)


class _SchedulerCollector(Collector):
    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample for each model."""
        found = {name: statistics() for name, statistics in self._statistics.items()}
        for name, (meaning, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["model"])
            for model, statistics in found.items():
                gauge.add_metric([model], value(statistics))
            yield gauge
        for name, (meaning, value) in _COUNTERS.items():
            counter = CounterMetricFamily(name, meaning, labels=["model"])
            for model, statistics in found.items():
                counter.add_metric([model], value(statistics))
            yield counter

    def describe(self) -> list[Metric]:
        """Nothing: asking the schedulers while they start would be too early."""
        return []
