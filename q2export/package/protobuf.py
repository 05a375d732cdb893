"""Walking protobuf messages without their library, which the runtime does not have.

A message is a run of fields, each a tag (field number and wire type) and a value. Source: the protobuf
encoding specification, https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from q2export.errors import Q2ExportError

Buffer = bytes | mmap.mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: ``BYTES`` are strings, messages and packed numbers."""

_FIXED = {FIXED64: 8, FIXED32: 4}
_MAX_BYTES = (1 << 31) - 1  # protobuf's own limit


@contextmanager
def mapped(path: Path, error: type[Q2ExportError]) -> Iterator[Buffer]:
    """The bytes of a regular file of at most 2 GiB, mapped; nothing is read that is not looked at.

    Raises:
        Q2ExportError: ``error``, naming the file, if it cannot be opened, is empty or is no such file.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            raise error(f"{path}: expected a regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not 0 < size <= _MAX_BYTES:
                raise error(f"{path}: expected an ONNX model, found a file of {size} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    with data:
        yield data


def tag(number: int, wire: int = BYTES) -> int:
    """What begins a field of a message."""
    return number << 3 | wire


def fields(data: Buffer, start: int, end: int, wanted: frozenset[int]) -> Iterator[tuple[int, int, int]]:
    """The fields of the message ``data[start:end]`` whose tags are ``wanted``, in order.

    Yields:
        The tag, where the value begins and where it ends; of a varint the value itself and where it ends.

    Raises:
        ValueError: the bytes are no message: cut short, or of a wire type that is no longer used.
    """
    position = start
    try:
        while position < end:
            key, size = data[position], data[position + 1]
            first = position + 2
            if size > 127 or key & 135 != BYTES:  # all but the common case: a tag and a size of one byte each
                key, first = varint(data, position)
                wire = key & 7
                if wire == VARINT:
                    value, position = varint(data, first)
                    if key in wanted and position <= end:
                        yield key, value, position
                    continue
                if wire == BYTES:
                    size, first = varint(data, first)
                elif wire in _FIXED:
                    size = _FIXED[wire]
                else:
                    raise ValueError(f"is damaged: byte {position} has wire type {wire}")
            position = first + size
            if key in wanted and position <= end:
                yield key, first, position
    except IndexError:
        position = end + 1
    if position != end:
        raise ValueError(f"is damaged: a field goes beyond byte {end}, where its message ends")


def varint(data: Buffer, position: int) -> tuple[int, int]:
    """The unsigned integer at ``position``, seven bits per byte, and where it ends.

    Raises:
        ValueError: it has more than 64 bits.
        IndexError: the data end first.
    """
    value = shift = 0
    while shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, position
        shift += 7
    raise ValueError(f"is damaged: byte {position} is within an integer of more than 64 bits")


def varints(data: Buffer, start: int, end: int) -> Iterator[int]:
    """The packed integers of ``data[start:end]``.

    Raises:
        ValueError: the last is cut short, or one has more than 64 bits.
    """
    while start < end:
        value, start = varint(data, start)
        yield value
    if start != end:
        raise ValueError(f"is damaged: an integer goes beyond byte {end}, where its list ends")
