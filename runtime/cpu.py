"""The processors and the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from q2export.errors import PackageError


def processors() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0))


def check_threads(threads: object) -> None:
    """Refuse a number of CPU threads that makes no sense here: more than processors only wait for each other.

    Raises:
        PackageError: not an integer from 0 (one per core) to the number of processors.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= processors():
        raise PackageError(
            f"threads must be an integer from 0 (one per core) to {processors()}, the processors of this "
            f"machine that may be used, found {threads!r}"
        )


def available_memory_bytes() -> int:
    """Memory that this process may still take: of the machine, or of its control group where that has less.

    0 where neither says.
    """
    found = [size for size in (_machine_bytes(), _group_bytes()) if size is not None]
    return max(0, min(found, default=0))


def _machine_bytes() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes() -> int | None:
    """Of the control group (version 2) that a container sees as its root."""
    group = Path("/sys/fs/cgroup")
    most, now = _lines(group / "memory.max"), _lines(group / "memory.current")
    if not most or not now or most[0] == "max":
        return None
    counts = dict(line.split() for line in _lines(group / "memory.stat"))
    return int(most[0]) - int(now[0]) + int(counts.get("inactive_file", 0))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
