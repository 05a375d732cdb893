"""Just enough SVG for the report: a canvas with a title and a description, text that is escaped, two scales.

Colours and fonts come from the page's style sheet through class names, so that one drawing serves light, dark
and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]


@dataclass
class Canvas:
    """An inline ``<svg>`` element in the making; coordinates are those of its view box, y grows downwards.

    Attributes:
        identifier: unique in the page; ``title`` and ``description`` are what screen readers say.
        width, height: of the view box.
    """

    identifier: str
    title: str
    description: str
    width: int
    height: int
    _elements: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, style: str) -> None:
        """A straight line of class ``style``."""
        (x1, y1), (x2, y2) = start, end
        self._elements.append(
            f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def rect(self, corner: Point, width: float, height: float, style: str, hint: str = "") -> None:
        """A rectangle; ``hint`` is shown when the pointer rests on it."""
        x, y = corner
        self._add("rect", f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"', style, hint)

    def circle(self, centre: Point, radius: float, style: str, hint: str = "") -> None:
        """A circle; ``hint`` is shown when the pointer rests on it."""
        self._add("circle", f'cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{radius:.1f}"', style, hint)

    def polyline(self, points: Sequence[Point], style: str) -> None:
        """Connected lines; nothing for fewer than two points."""
        if len(points) < 2:
            return
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline class="{style}" points="{path}"/>')

    def text(self, at: Point, words: str, style: str) -> None:
        """Text on its baseline; the class sets the anchor."""
        self._elements.append(f'<text class="{style}" x="{at[0]:.1f}" y="{at[1]:.1f}">{escape(words)}</text>')

    def vertical_text(self, at: Point, words: str, style: str) -> None:
        """Text that reads upwards."""
        turn = f"rotate(-90 {at[0]:.1f} {at[1]:.1f})"
        position = f'x="{at[0]:.1f}" y="{at[1]:.1f}" transform="{turn}"'
        self._elements.append(f'<text class="{style}" {position}>{escape(words)}</text>')

    def render(self) -> str:
        """The element as text."""
        name = escape(self.identifier, quote=True)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-labelledby="{name}-title {name}-desc">'
            f'<title id="{name}-title">{escape(self.title)}</title>'
            f'<desc id="{name}-desc">{escape(self.description)}</desc>{"".join(self._elements)}</svg>'
        )

    def _add(self, tag: str, geometry: str, style: str, hint: str) -> None:
        inner = f"<title>{escape(hint)}</title>" if hint else ""
        self._elements.append(f'<{tag} class="{style}" {geometry}>{inner}</{tag}>')


@dataclass(frozen=True)
class LinearScale:
    """Maps ``[first, last]`` to ``[start, end]`` of the view box."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of ``value``."""
        span = self.last - self.first
        return self.start + (self.end - self.start) * ((value - self.first) / span if span else 0.5)


@dataclass(frozen=True)
class LogScale:
    """Maps whole decades ``10**first .. 10**last`` to ``[start, end]``; 0 lies at ``zero``, off the scale."""

    first: int
    last: int
    start: float
    end: float
    zero: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, zero: float) -> LogScale:
        """The smallest scale of at least two decades that holds all positive ``values``."""
        positive = [value for value in values if value > 0]
        first = math.floor(math.log10(min(positive))) if positive else -1
        last = math.ceil(math.log10(max(positive))) if positive else 1
        return cls(first, max(last, first + 2), start, end, zero)

    def __call__(self, value: float) -> float:
        """Position of ``value``."""
        if value <= 0:
            return self.zero
        return LinearScale(self.first, self.last, self.start, self.end)(math.log10(value))

    def ticks(self) -> list[int]:
        """Exponents to label: every decade, or fewer if there are many."""
        step = 1 + (self.last - self.first) // 9
        return list(range(self.first, self.last + 1, step))
