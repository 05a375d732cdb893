"""Time and memory of a run."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass
class Stopwatch:
    """Seconds each stage took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as the stage ``name``, and log when it begins and what it took."""
        start = time.perf_counter()
        _log.info("%s ...", name)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            _log.info("%s: %.2f s", name, took)


def peak_rss_bytes() -> int:
    """Largest resident set of this program so far, in bytes.

    From ``/proc``, where it tells: ``getrusage`` counts the process that started this one as well, because a
    child shares its parent's memory until it calls exec.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
