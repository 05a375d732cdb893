"""The processors of this machine, and how many threads they make sense for."""

from __future__ import annotations

import os

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
