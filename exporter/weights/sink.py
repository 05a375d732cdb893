"""Where weights and graphs are written: what the exporter has to know of a package."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

Scan = Literal["all", "converted", "none"]
"""Which weights are checked for NaN, infinity and overflow: all, those read anyway to be converted, none."""


class BinarySink(Protocol):
    """A file that is being written."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append C-contiguous data."""


class WeightSink(Protocol):
    """A folder that comes to hold weights and graphs; all names are paths relative to it."""

    @property
    def folder(self) -> Path:
        """The folder; a checkpoint made for it may lie in it already."""

    def expect_weights(self, shards: Sequence[Path]) -> None:
        """Say what bringing in these files of the checkpoint will take, before any of them is."""

    def place_weights(self, shard: Path, name: str, sha256: str | None = None) -> None:
        """Bring in a file of the checkpoint; ``sha256`` is that of all of it, where it was read anyway."""

    def add_weights(self, name: str, sources: tuple[str, ...], sha256: str) -> None:
        """Take a file that was written to the folder, made of the files ``sources`` of the checkpoint."""

    def open_weights(
        self, name: str, sources: tuple[str, ...], nbytes: int
    ) -> AbstractContextManager[BinarySink]:
        """Write a new file of about ``nbytes``, made of the files ``sources`` of the checkpoint."""

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
