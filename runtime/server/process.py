"""The server as a process of its own: uvicorn, its signals, and what it prints."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from q2export.errors import Q2ExportError
from q2export.runtime.server.service import Service

_log = logging.getLogger(__name__)
_LAST_WORDS = 5.0  # seconds for answers to be written when nothing is generated any more


class Server(uvicorn.Server):
    """uvicorn that on SIGTERM or SIGINT first finishes what runs, and then ends as a program that succeeded.

    While it drains it still listens: new requests are answered 503, and so is its readiness. A second signal
    ends it at once.

    Args:
        config: with the application.
        drain_seconds: for requests that run; what is not done by then is ended with an error.
        announce: called with the socket when requests are taken.
    """

    def __init__(
        self, config: uvicorn.Config, drain_seconds: float, announce: Callable[[socket.socket], None]
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._announce = announce
        self._drain: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            assert sockets
            self._announce(sockets[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; unlike uvicorn's own it is not raised again at the end."""
        if self._signalled:
            self.should_exit = self.force_exit = True
        self._signalled = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: begin to drain once a signal has come."""
        if self._signalled and self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        app = self.config.app
        assert isinstance(app, Starlette)
        service: Service = app.state.service
        _log.info("shutting down: %d requests run", service.active)
        await service.drain(self._drain_seconds)
        self.should_exit = True


def run(
    app: Starlette, listening: socket.socket, *, drain_seconds: float, announce: Callable[[str], None]
) -> None:
    """Serve until a signal comes.

    Args:
        app: from :func:`q2export.runtime.server.app.create_app`.
        listening: a bound socket, from :func:`listen`.
        drain_seconds: in which what runs must be done after the signal.
        announce: called with the address when requests are taken.

    Raises:
        Q2ExportError: the application did not start; its log says why.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_LAST_WORDS),
        timeout_keep_alive=30,
    )
    server = Server(config, drain_seconds, lambda bound: announce(address(bound)))
    try:
        server.run([listening])
    except SystemExit:
        raise Q2ExportError("the server did not start") from None


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises:
        Q2ExportError: the address is in use, or none of this machine's.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        raise Q2ExportError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return bound


def address(bound: socket.socket) -> str:
    """The address of a bound socket, for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
