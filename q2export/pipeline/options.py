"""How a checkpoint becomes a package: what somebody may choose besides the profile's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from q2export.errors import OptionError
from q2export.package.placement import PlacementMode


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of ``q2export.build``, by its names; what they mean is said there.

    Raises:
        OptionError: two of them contradict each other.
    """

    profile: str | Path = "cpu"
    overrides: Mapping[str, object] = field(default_factory=dict)
    revision: str | None = None
    parity: bool = True
    value_scan: bool = True
    weights: PlacementMode = "auto"
    timing_cache: Path | None = None
    quality_text: str | Path | None = None
    allow_quality_loss: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_placement(self.weights)
        if not self.parity:
            self.refuse_quality_options("without the parity check nothing is compared with PyTorch")

    def refuse_quality_options(self, because: str) -> None:
        """Refuse what says how quality is measured, where it is not."""
        for name in ("quality_text", "allow_quality_loss"):
            if getattr(self, name):
                raise OptionError(name, f"has no effect: {because}; leave it out")


def check_placement(mode: str) -> None:
    """Refuse a way to place weights that there is not.

    Raises:
        OptionError: naming the ways there are.
    """
    if mode not in get_args(PlacementMode):
        raise OptionError("weights", f"must be one of {', '.join(get_args(PlacementMode))}, found {mode!r}")
