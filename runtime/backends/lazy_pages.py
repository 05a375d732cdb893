"""Memory whose pages are taken when they are first written, and can be given back one by one."""

from __future__ import annotations

import mmap
from contextlib import suppress

_MAP_NORESERVE = 0x4000  # Linux; Python's mmap has the name from 3.13 on


class LazyPages:
    """An anonymous mapping of zeros, which may be larger than the machine's memory.

    Args:
        size: in bytes.

    Raises:
        OSError: the system refuses so much address space.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.memory = mmap.mmap(-1, size, flags=flags)
        # Large pages would make a short sequence take the memory of a long one.
        with suppress(OSError):  # of a kernel that knows none
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)

    def release(self, start: int, size: int) -> None:
        """Give back the pages that lie wholly in ``size`` bytes from ``start`` on; they become zeros."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            self.memory.madvise(mmap.MADV_DONTNEED, first, end - first)
