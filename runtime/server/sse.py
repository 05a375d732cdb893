"""Answers as a stream of server-sent events, and the end of work whose client has gone away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

ResultT = TypeVar("ResultT")
DONE = b"data: [DONE]\n\n"


def json_bytes(document: object) -> bytes:
    """JSON in UTF-8; NaN and infinity, which JSON has not, raise."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def frame(document: object) -> bytes:
    """One event."""
    return b"data: " + json_bytes(document) + b"\n\n"


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, ResultT], cancel: Callable[[], None]
) -> ResultT:
    """Do ``work``, whose request has been read in full, but end it when its client goes away.

    Args:
        receive: of the request.
        work: writes the answer.
        cancel: ends what computes it; called in any case, when the work has ended or will not begin.

    Raises:
        ClientDisconnect: it went away; the work was cancelled and has ended.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        cancel()
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class EventStream(Response):
    """A stream of server-sent events that ends its work when the client goes away, whatever it waits for.

    Args:
        frames: the events; each item is sent as one piece.
        cancel: ends what makes them; called in any case.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], cancel: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        try:
            await unless_gone(receive, self._write(send), self._cancel)
        except (ClientDisconnect, OSError):
            return

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._frames:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            await self._frames.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
