"""What a command is given to work on: text in a file or on stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from q2export.errors import Q2ExportError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of stdin for ``-``, without one newline at its end.

    Raises:
        Q2ExportError: the file cannot be read, or is not UTF-8.
    """
    if str(path) == "-":
        return read_stdin()
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise Q2ExportError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise Q2ExportError(f"{path}: expected UTF-8 text, found another byte at {error.start}") from error


def read_stdin() -> str:
    """All of stdin, without one newline at its end.

    Raises:
        Q2ExportError: it is not text in the terminal's encoding.
    """
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise Q2ExportError(f"stdin: expected {error.encoding} text, found another byte") from error
