"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """Settings of the application.

    Attributes:
        api_key: what clients must send as ``Authorization: Bearer KEY``; None asks for nothing.
        max_body_bytes: of a request; a larger one is answered 413.
        body_seconds: in which a request's body must have come.
        max_choices: texts that one request may ask for, ``n`` times its prompts.
        allow_special_tokens: in a prompt of ``/v1/completions`` and ``/tokenize``, the text of a special
            token becomes that token. Messages are never read so.
    """

    api_key: str | None = None
    max_body_bytes: int = 8 << 20
    body_seconds: float = 60.0
    max_choices: int = 128
    allow_special_tokens: bool = False
