"""What a request is refused with: a status, and the error object that OpenAI's clients read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from q2export.errors import ClosedError, Q2ExportError

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that is not answered as asked.

    Args:
        status: of HTTP.
        message: what was expected, what was found, what to do.
        param: the field of the request, such as ``messages[0].content``.
        code: for programs, such as ``context_length_exceeded``.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object, in the shape of OpenAI's."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself: 400."""
    return ApiError(400, message, param=param, code=code)


def draining() -> ApiError:
    """The server finishes what runs and takes nothing new: 503."""
    return ApiError(
        503, "the server is shutting down; send the request to another one", code="draining", headers=_RETRY
    )


def generation_failed(error: Q2ExportError) -> ApiError:
    """A request that was taken, and whose text did not come to its end."""
    if isinstance(error, ClosedError):
        return draining()
    _log.error("a generation failed: %s", error)
    return ApiError(500, f"the text could not be finished: {error}", code="generation_failed")


def internal() -> ApiError:
    """A failure of ours: 500, without its details, which are in the log."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


_RETRY = {"Retry-After": "1"}
