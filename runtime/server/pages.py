"""The pages for people, each of them one file that loads nothing: a chat at ``/``, the API at ``/docs``."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from q2export.runtime.server.service import Service

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def chat_page(service: Service, request: Request) -> Response:
    """A chat in the browser."""
    return _page("chat.html")


async def docs_page(service: Service, request: Request) -> Response:
    """This API, for people."""
    return _page("docs.html")


def _page(name: str) -> Response:
    return Response(
        Path(__file__).with_name(name).read_bytes(), headers=_HEADERS, media_type="text/html; charset=utf-8"
    )
