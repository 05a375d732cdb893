"""Results as text: a summary for the terminal, and the page of operator decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]
_BYTES = ("peak memory", "memory at decode", "bytes written")


def format_value(metric: str, value: float) -> str:
    """``1.25 GB``, ``46.1 ms`` or ``12.30 s``."""
    if metric in _BYTES:
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def summary_lines(result: Result) -> Iterator[str]:
    """Medians per metric and contestant, what was asked of them, and what was skipped."""
    yield f"{result['case']}: {len(result['records'])} measurements"
    if "title" not in result:
        return
    by_metric: dict[str, list[Mapping[str, Any]]] = {}
    for record in result["records"]:
        by_metric.setdefault(record["metric"], []).append(record)
    for metric, group in by_metric.items():
        yield f"  {metric}"
        for record in group:
            span = f"{format_value(metric, record['min'])} .. {format_value(metric, record['max'])}"
            yield f"    {record['contestant']:32} {format_value(metric, record['median']):>10}  ({span})"
        yield from _bar_lines([bar for bar in result["bars"] if bar["metric"] == metric])
    measured = by_metric.keys()
    yield from _bar_lines([bar for bar in result["bars"] if bar["metric"] not in measured])
    for name, reason in result["skipped"].items():
        yield f"  skipped {name}: {reason.splitlines()[0]}"


def _bar_lines(bars: list[Mapping[str, Any]]) -> Iterator[str]:
    """One line per subject and peer, and one per limit; the verdict stands with the peer that decides."""
    for bar in bars:
        ratios = bar.get("speedup_over")
        if not ratios:
            yield f"      {bar_text(bar)}: {_verdict(bar['met'])}"
            continue
        for peer, ratio in ratios.items():
            line = f"      {bar['subject']} is {ratio:5.2f}x of {peer}"
            if bar["at_least"] and ratio == min(ratios.values()):
                line = f"{line:64} at least {bar['at_least']:g}x: {_verdict(bar['met'])}"
            yield line


def bar_text(bar: Mapping[str, Any]) -> str:
    """A bar and what was measured against it, in words."""
    if "speedup_over" in bar:
        ratios = ", ".join(f"{ratio:.2f}x of {peer}" for peer, ratio in bar["speedup_over"].items())
        return f"{bar['metric']} of {bar['subject']}: {ratios or 'no peer'} (at least {bar['at_least']:g}x)"
    value = "not measured" if bar["value"] is None else format_value(bar["metric"], bar["value"])
    limit = format_value(bar["metric"], bar["at_most"])
    return f"{bar['metric']} of {bar['subject']}: {value} (at most {limit})"


def ort_ops_page(result: Result) -> str:
    """Markdown: per op and size a table, points by variants, medians and the fastest in bold."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Operator choices on ONNX Runtime CPU",
        "",
        "Milliseconds, median (minimum) of interleaved runs; the fastest median of a row is bold. Every",
        "variant was first compared with a numpy reference; the last row is its largest absolute error.",
        "",
        f"{machine['cpu']} ({machine['vector_extensions']}), {machine['cores']} cores,",
        f"{result['threads']} threads, load {machine['load_1min']} at the start; {versions};",
        f"commit {result['commit']}, {result['date']}: `{result['command']}`",
    ]
    if result.get("decisions"):
        lines += ["", "Decided from it:", "", *(f"- {decision}" for decision in result["decisions"])]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in result["records"]:
        groups.setdefault((record["op"], record["size"]), []).append(record)
    for (op, size), group in groups.items():
        lines += ["", f"## {op}, {size}", "", *_op_table(group)]
    return "\n".join(lines) + "\n"


def _op_table(group: list[Mapping[str, Any]]) -> Iterator[str]:
    variants = list(dict.fromkeys(record["variant"] for record in group))
    points = list(dict.fromkeys(record["point"] for record in group))
    yield f"| batch x tokens | {' | '.join(variants)} |"
    yield f"|---|{'---:|' * len(variants)}"
    for point in points:
        cells = {record["variant"]: record for record in group if record["point"] == point}
        best = min(cell["median"] for cell in cells.values())
        texts = [_cell(cells.get(variant), best) for variant in variants]
        yield f"| {point} | {' | '.join(texts)} |"
    errors = {
        variant: max(record["max_abs_error"] for record in group if record["variant"] == variant)
        for variant in variants
    }
    yield f"| error | {' | '.join(f'{errors[variant]:.1e}' for variant in variants)} |"


def _cell(record: Mapping[str, Any] | None, best: float) -> str:
    if record is None:
        return "not defined"
    median = f"{record['median'] * 1e3:.3g}"
    shown = f"**{median}**" if record["median"] == best else median
    return f"{shown} ({record['min'] * 1e3:.3g})"


def _verdict(met: bool | None) -> str:
    return {True: "reached", False: "NOT REACHED", None: "not measured"}[met]
