"""Around every endpoint: who may ask, how much may be sent, and what an error looks like."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from q2export.errors import ClosedError, GenerationError, QueueFullError
from q2export.runtime.server.errors import ApiError, draining, internal
from q2export.runtime.server.service import Service
from q2export.runtime.server.sse import json_bytes

_log = logging.getLogger(__name__)
Handler = Callable[[Service, Request], Awaitable[Response]]
_READ = 8  # times the most that a body may have
_GONE = 499  # as nginx says it: nobody reads the answer


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(json_bytes(document), status, headers, media_type="application/json")


class Endpoint:
    """An address of the application (ASGI), with what holds for all of them.

    Args:
        handler: answers a request, or raises an ApiError or a GenerationError.
        generates: it makes the engine work; it is refused while the server drains, which waits for its end.
        open_to_all: it needs no key.
    """

    def __init__(self, handler: Handler, *, generates: bool = False, open_to_all: bool = False) -> None:
        self._handler = handler
        self._generates = generates
        self._open_to_all = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, to the last byte."""
        request = Request(scope, receive, send)
        service: Service = request.app.state.service
        service.active += self._generates
        try:
            response = await self._answer(service, request)
            service.metrics.answered(scope["route"].path, response.status_code)
            await response(scope, receive, send)
        finally:
            service.active -= self._generates

    async def _answer(self, service: Service, request: Request) -> Response:
        try:
            if not self._open_to_all:
                _check_key(service, request)
            if self._generates:
                service.check_open()
            return await self._handler(service, request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:  # noqa: BLE001 - each becomes an answer here
            return error_response(as_api_error(error))


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error; one that is not the request's fault is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, ClosedError):
        return draining()
    if isinstance(error, GenerationError):
        return ApiError(400, str(error))
    _log.error("a request failed", exc_info=error)
    return internal()


def error_response(error: ApiError) -> Response:
    """An error as an answer of its own."""
    return json_response(error.body(), error.status, error.headers)


async def http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: no such address, or not with this method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = {404: f"there is no {where}", 405: f"{where} is not allowed"}.get(
        error.status_code, error.detail
    )
    return error_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))


def _check_key(service: Service, request: Request) -> None:
    key = service.options.api_key
    if key is None:
        return
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise ApiError(
            401,
            "this server wants a key: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(service: Service, request: Request) -> bytes:
    """The body of a request.

    Of one that is too large, some more is read and dropped: a client that still sends would not read why it
    is refused.

    Raises:
        ApiError: 413, too large; 408, it does not come.
        ClientDisconnect: the client went away.
    """
    most, size, pieces = service.options.max_body_bytes, 0, []
    declared = request.headers.get("Content-Length", "")
    too_large = declared.isdigit() and int(declared) > most
    more = not (too_large and "Expect" in request.headers)  # whoever asks first has not sent it
    try:
        async with asyncio.timeout(service.options.body_seconds):
            while more and size <= _READ * most:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece, more = message.get("body", b""), message.get("more_body", False)
                size += len(piece)
                too_large |= size > most
                pieces += [] if too_large else [piece]
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {service.options.body_seconds:g} s") from None
    if too_large:
        refusal = f"the body has more than {most} bytes, the most that this server takes"
        raise ApiError(413, refusal, headers={"Connection": "close"})
    return b"".join(pieces)
