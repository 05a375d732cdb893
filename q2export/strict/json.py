"""JSON from files that may be damaged or hostile: UTF-8, no duplicate keys, no NaN, bounded integers and
depth."""

from __future__ import annotations

import json
import reprlib
import stat
from pathlib import Path
from typing import NoReturn

from q2export.errors import Q2ExportError

_MAX_INTEGER_DIGITS = (
    20  # 2**64 has 20; Python's own limit of 4,300 digits is too late and absent before 3.11
)

_SHOWN_CHARACTERS = 120

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _SHOWN_CHARACTERS


def shown(value: object) -> str:
    """``repr`` of an untrusted value, cut to a length and depth fit for an error message."""
    text = _short.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def read_object(path: Path, limit: int, error: type[Q2ExportError]) -> dict[str, object]:
    """Read the JSON object in ``path``, a regular file of at most ``limit`` bytes.

    Raises:
        Q2ExportError: ``error``, naming the file, if it cannot be read or is not one strict JSON object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise error(f"{path}: expected a regular file")
        if status.st_size > limit:
            raise error(f"{path}: {status.st_size} bytes, expected at most {limit}; is this the right file?")
        content = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    return parse_object(content, str(path), error)


def parse_object(content: bytes, where: str, error: type[Q2ExportError]) -> dict[str, object]:
    """Parse one JSON object from UTF-8 bytes.

    Raises:
        Q2ExportError: ``error``, starting with ``where``, on anything but one strict JSON object.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as problem:
        raise error(f"{where}: expected UTF-8 text, found byte {problem.start} that is not") from problem
    except RecursionError as problem:
        raise error(f"{where}: not valid JSON: nested too deeply") from problem
    except ValueError as problem:
        raise error(f"{where}: not valid JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {shown(value)}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique: dict[str, object] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {shown(key)} is given twice")
        unique[key] = value
    return unique


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
