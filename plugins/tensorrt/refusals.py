"""What the plugins refused, for whoever drives the parser: TensorRT only says that something failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from q2export.errors import Q2ExportError

_messages: list[str] = []


@contextmanager
def recorded() -> Iterator[None]:
    """Keep the message of an error that is about to be lost in a callback of TensorRT; the error goes on."""
    try:
        yield
    except Q2ExportError as error:
        if str(error) not in _messages:
            _messages.append(str(error))
        raise


def take_refusals() -> tuple[str, ...]:
    """Return the messages since the last call, each once, and forget them.

    Call it after parsing and after building: if there are any, they say why TensorRT failed.
    """
    taken = tuple(_messages)
    _messages.clear()
    return taken
