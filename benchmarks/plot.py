"""The plot: how many times faster than each named peer, around the line at 1x, with the bar to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REACHED, _MISSED, _INFORMATIVE = "#2a7f9e", "#c8553d", "#b9cbd3"
_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Row:
    """One bar of the plot.

    Attributes:
        metric, subject, peer: what was compared.
        ratio: times faster than the peer.
        at_least: the ratio to reach; 0 where there is none.
        decides: whether this is the fastest of the peers that the bar names.
    """

    metric: str
    subject: str
    peer: str
    ratio: float
    at_least: float
    decides: bool

    @property
    def color(self) -> str:
        """By verdict; pale where there is nothing to reach or another peer decides."""
        if not self.decides or not self.at_least:
            return _INFORMATIVE
        return _REACHED if self.ratio >= self.at_least else _MISSED

    def label(self, usual_subject: str) -> str:
        """``decode vs transformers fp32``, with the subject where it is another than the usual one."""
        subject = "" if self.subject == usual_subject else f" ({self.subject})"
        return f"{self.metric}{subject} vs {self.peer}"


def plot_speedups(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG, bars on a logarithmic axis: one panel per case, one bar per metric and peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(result, speed_rows(result)) for result in results]
    ratios = [row.ratio for _, rows in panels for row in rows]
    limits = (min([0.5, *ratios]) / 1.15, max([4.0, *ratios]) * 1.5)
    heights = [len(rows) + 1.5 for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.27 * sum(heights) + 1.2), height_ratios=heights, squeeze=False
    )
    for axis, (result, rows) in zip(axes[:, 0], panels, strict=True):
        _draw(axis, result["title"], rows, limits)
    _legend(figure)
    machine = results[0]["machine"]
    note = (
        f"{machine['cpu']}, {machine['cores']} cores, {results[0]['threads']} threads. "
        "Contestants take turns in one run; median of the ratios within the rounds."
    )
    figure.text(0.012, 0.008, note, fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, 0.025, 1, 1 - 0.55 / figure.get_figheight()))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def speed_rows(result: Mapping[str, Any]) -> list[Row]:
    """Rows of a panel, in the order of the bars of the case."""
    rows = []
    for bar in result["bars"]:
        ratios = bar.get("speedup_over", {})
        for peer, ratio in ratios.items():
            decides = ratio == min(ratios.values())
            rows.append(Row(bar["metric"], bar["subject"], peer, ratio, float(bar["at_least"]), decides))
    return rows


def _draw(axis: Any, title: str, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    for index, row in enumerate(rows):
        axis.barh(index, row.ratio - 1, left=1, height=0.7, color=row.color)
        marked = row.at_least and row.decides
        end = max(row.ratio, 1.0)
        if marked and end <= row.at_least < 1.3 * end:  # the number would cross the mark
            end = row.at_least
        axis.text(end * 1.03, index, f"{row.ratio:.2f}x", va="center", fontsize=8)
        if marked:
            axis.plot([row.at_least] * 2, [index - 0.45, index + 0.45], color="black", linewidth=1.8)
    axis.axvline(1.0, color="#333333", linewidth=0.8, linestyle="--", zorder=0)
    labels = [row.label(rows[0].subject) for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xscale("log", base=2)
    ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_xlim(*limits)
    axis.set_title(title, loc="left", fontsize=9.5, weight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    title_top = 1 - 0.08 / figure.get_figheight()
    title = "q2export against its peers: how many times faster (memory: how many times less)"
    figure.text(0.012, title_top, title, ha="left", va="top", fontsize=12, weight="bold")
    handles = [
        Patch(color=_REACHED, label="reached"),
        Patch(color=_MISSED, label="not reached"),
        Patch(color=_INFORMATIVE, label="nothing to reach, or a faster peer decides"),
        Line2D([], [], color="black", linewidth=1.8, label="to be reached"),
    ]
    top = 1 - 0.28 / figure.get_figheight()
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.003, top), ncols=4, fontsize=8, frameon=False
    )
