"""The standard streams of the process: some may be closed, full, or read by nobody any more.

A program that is started with a closed stream would give its number to the next file it opens, and what a
library prints would end up there.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from q2export.cli.exit_codes import BROKEN_PIPE, FAILED, OK
from q2export.errors import Q2ExportError


class OutputError(Q2ExportError):
    """What a command has to say cannot be written to stdout."""


class _Stdout(io.TextIOWrapper):
    """Stdout whose failures are errors of the user's; a reader that goes away stays a broken pipe."""

    def write(self, text: str) -> int:
        """Write as usual."""
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error

    def flush(self) -> None:
        """Flush as usual."""
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error


class _Stderr(io.TextIOWrapper):
    """Stderr that may fail: then there is nobody left to tell, and the exit code says what happened."""

    def write(self, text: str) -> int:
        """Write if that is possible."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            super().flush()
        except OSError:
            return


def prepare() -> None:
    """Give every closed stream a place, and let no failing one end in a traceback.

    Nothing comes from a closed stdin; writing to a closed stdout fails; a closed stderr swallows all.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
    sys.stdout = _wrapped(sys.stdout, 1, _Stdout)
    sys.stderr = _wrapped(sys.stderr, 2, _Stderr)


def _wrapped(stream: TextIO | None, number: int, kind: type[io.TextIOWrapper]) -> TextIO:
    """A stream of ``kind`` over the same file."""
    if not isinstance(stream, io.TextIOWrapper):
        return kind(open(number, "wb", closefd=False), "utf-8")
    encoding, errors, buffering = stream.encoding, stream.errors, stream.line_buffering
    return kind(stream.detach(), encoding, errors, line_buffering=buffering)


def finish(code: int) -> int:
    """Write what is left to be written; the exit code, which tells if that fails.

    The interpreter flushes stdout once more when it exits: after a failure that goes nowhere.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OutputError as error:
        if code == OK:
            sys.stderr.write(f"error: {error}\n")
            code = FAILED
    else:
        if code != BROKEN_PIPE:
            return code
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return code
