"""The plot: how many times faster than each named peer, with the line at 1x and the bar to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REACHED, _MISSED, _INFORMATIVE = "#2a7f9e", "#c8553d", "#9fb8c3"


def plot_speedups(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of horizontal bars, one panel per case, one bar per metric and peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(result, speed_rows(result)) for result in results]
    heights = [max(len(rows), 1) + 1.2 for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.36 * sum(heights) + 1.0), height_ratios=heights, squeeze=False
    )
    for axis, (result, rows) in zip(axes[:, 0], panels, strict=True):
        _draw(axis, result, rows)
    machine = results[0]["machine"]
    figure.suptitle("Speed of q2export over its peers (higher is better)", x=0.01, ha="left", weight="bold")
    note = (
        f"{machine['cpu']}, {machine['cores']} cores, {results[0]['threads']} threads; "
        "interleaved, median of paired ratios"
    )
    figure.text(0.01, 0.004, note, fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def speed_rows(result: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Rows of a panel: label, speed-up, the bar to reach, and whether this peer is the one that decides."""
    rows = []
    for bar in result["bars"]:
        ratios = bar.get("speedup_over", {})
        for peer, ratio in ratios.items():
            decides = ratio == min(ratios.values())
            rows.append(
                (f"{bar['subject']}, {bar['metric']}\nover {peer}", ratio, float(bar["at_least"]), decides)
            )
    return rows


def _draw(axis: Any, result: Mapping[str, Any], rows: Sequence[tuple[str, float, float, bool]]) -> None:
    for index, (_, ratio, at_least, decides) in enumerate(rows):
        color = (_REACHED if ratio >= at_least else _MISSED) if decides else _INFORMATIVE
        axis.barh(index, ratio, height=0.66, color=color)
        axis.text(ratio, index, f" {ratio:.2f}x", va="center", fontsize=8)
        if at_least > 0:
            axis.plot([at_least, at_least], [index - 0.42, index + 0.42], color="black", linewidth=1.6)
    axis.axvline(1.0, color="#333333", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=7.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max([1.0, *(ratio for _, ratio, _, _ in rows)]))
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(result["title"], loc="left", fontsize=9.5)
    axis.spines[["top", "right"]].set_visible(False)
