"""The switches that hold back what has never run on a Hopper GPU, and how they are flipped."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.plan import CampaignError


@dataclass(frozen=True)
class Switch:
    """A constant of a header.

    Attributes:
        name: ``constexpr bool`` of the header.
        header: below the root of the tree.
        tests: file of tests that ask for its path by name, whatever the switch says.
        word: in the names of those tests.
        cases: of ``benchmarks.kernels`` that it should make faster, and that decide about it.
    """

    name: str
    header: str
    tests: str
    word: str
    cases: tuple[str, ...]

    def flipped(self, text: str) -> str:
        """The header with the switch on.

        Raises:
            CampaignError: it has no such constant that is off.
        """
        off, on = (f"constexpr bool {self.name} = {value};" for value in ("false", "true"))
        if text.count(off) != 1:
            raise CampaignError(f"{self.header}: expected {off!r} once, found it {text.count(off)} times")
        return text.replace(off, on)


PREFILL = "plugins/csrc/kernels/attention/prefill_heuristics.h"
MOE = "plugins/csrc/kernels/moe/heuristics.h"
SWITCHES = (
    Switch(
        "kHopperTileIsTested",
        PREFILL,
        "tests/gpu/test_prefill.py",
        "hopper",
        ("prefill-7b-8k", "prefill-0.5b-8k", "prefill-7b-chunk-1k-on-8k"),
    ),
    Switch(
        "kHopperMoeIsTested",
        MOE,
        "tests/gpu/test_moe.py",
        "hopper",
        ("moe-57b-4096", "moe-a2.7b-4096"),
    ),
    Switch(
        "kOverlapIsTested",
        MOE,
        "tests/gpu/test_moe.py",
        "overlapping",
        ("moe-57b-1", "moe-57b-8", "moe-57b-64", "moe-a2.7b-8"),
    ),
)


def is_on(switch: Switch, root: Path) -> bool:
    """Whether the tree has it on already."""
    return f"constexpr bool {switch.name} = true;" in (root / switch.header).read_text(encoding="utf-8")


def flip(switch: Switch, root: Path) -> None:
    """Turn it on in the tree at ``root``."""
    path = root / switch.header
    path.write_text(switch.flipped(path.read_text(encoding="utf-8")), encoding="utf-8")


def patch(switches: Sequence[Switch], root: Path) -> str:
    """What turning them on changes in the tree, for ``git apply``."""
    parts: list[str] = []
    for header in dict.fromkeys(switch.header for switch in switches):
        old = (root / header).read_text(encoding="utf-8")
        new = old
        for switch in switches:
            if switch.header == header:
                new = switch.flipped(new)
        before, after = (text.splitlines(keepends=True) for text in (old, new))
        parts += difflib.unified_diff(before, after, f"a/{header}", f"b/{header}")
    return "".join(parts)
