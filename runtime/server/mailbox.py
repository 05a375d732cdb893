"""From the thread that computes to the coroutine that answers."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Mailbox(Generic[ItemT]):
    """Takes items from any thread without making it wait; one coroutine of the running loop gets them.

    The loop is woken once for all that came since it last looked. What a slow reader leaves here is bounded
    by the tokens of its request.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: deque[ItemT] = deque()
        self._arrived = asyncio.Event()

    def put(self, item: ItemT) -> None:
        """Leave an item; may be called from any thread, and after the loop has ended."""
        with self._lock:
            waking = bool(self._items)
            self._items.append(item)
        if not waking and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # closed just now: nobody reads any more
                return

    async def take(self) -> list[ItemT]:
        """All items that have come, at least one, in their order."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                items, self._items = list(self._items), deque()
            if items:
                return items
