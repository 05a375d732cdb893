"""Strict conversion between frozen dataclasses and plain data (JSON, YAML).

Shared by profiles and manifests, so that both refuse unknown keys, missing keys and wrong types in the same
words. Supported field types: ``str``, ``int``, ``float``, ``bool``, ``Literal`` of strings, ``X | None``,
``tuple[X, ...]``, ``Mapping[str, X]``, ``object`` (any JSON value) and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from q2export.errors import Q2ExportError
from q2export.strict.json import shown
from q2export.strict.suggest import nearest

T = TypeVar("T")
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_MAX_DEPTH = 32  # of free-form JSON values; nothing this package writes comes near it


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value was read, for messages: ``label`` is the file, ``error`` the class to raise."""

    label: str
    error: type[Q2ExportError]

    def refuse(self, key: str, expected: str, found: object) -> Q2ExportError:
        """The error for a value of the wrong kind at the dotted ``key``."""
        what = f"{shown(found)} ({type(found).__name__})"
        return self.error(f"{self.label}: {key or 'the top level'} must be {expected}, found {what}")


def fields_of(kind: type) -> dict[str, Any]:
    """Field name -> resolved type of the fields of a dataclass that take part in conversion.

    A field with metadata ``{"plain": False}`` is left out: it is bookkeeping, not data.
    """
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.metadata.get("plain", True)}


def to_plain(value: object) -> Any:
    """Turn dataclasses, tuples and mappings into dicts and lists, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in fields_of(type(value))}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], data: object, source: Source, key: str = "") -> T:
    """Build a dataclass from plain data. Every field must be present and nothing else may be.

    Raises:
        Q2ExportError: ``source.error``, naming the file, the dotted key, what was expected and what was
            found.
    """
    if not isinstance(data, Mapping):
        raise source.refuse(key, "a mapping", data)
    hints = fields_of(kind)
    inside = f" in {key}" if key else ""
    for name in data:
        if name not in hints:
            raise source.error(
                f"{source.label}: unknown key {shown(name)}{inside}{nearest(str(name), hints)}"
            )
    for name in hints:
        if name not in data:
            raise source.error(f"{source.label}: key {name!r}{inside} is missing")
    values = {name: decode(hint, data[name], source, join(key, name)) for name, hint in hints.items()}
    try:
        return kind(**values)
    except Q2ExportError as error:
        raise source.error(f"{source.label}: {key + ': ' if key else ''}{error}") from error


def join(key: str, name: str) -> str:
    """``"capacity"``, ``"max"`` -> ``"capacity.max"``."""
    return f"{key}.{name}" if key else name


def decode(hint: Any, value: object, source: Source, key: str) -> Any:
    """Check one value against a type hint and return it, converted where the type asks for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else decode(inner, value, source, key)
    if origin is Literal:
        if not isinstance(value, str):
            raise source.refuse(key, f"one of {', '.join(arguments)}", value)
        if value not in arguments:
            raise source.error(f"{source.label}: {key} is {shown(value)}{nearest(value, arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise source.refuse(key, "a list", value)
        return tuple(
            decode(arguments[0], item, source, f"{key}[{index}]") for index, item in enumerate(value)
        )
    if origin is not None and issubclass(origin, Mapping):
        return _decode_mapping(arguments[1], value, source, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, source, key)
    if hint is object:
        return _decode_json(value, source, key, _MAX_DEPTH)
    return _decode_scalar(hint, value, source, key)


def _decode_mapping(hint: Any, value: object, source: Source, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise source.refuse(key, "a mapping", value)
    for name in value:
        if not isinstance(name, str):
            raise source.refuse(f"a key of {key}", "a string", name)
    return {name: decode(hint, item, source, f"{key}[{shown(name)}]") for name, item in value.items()}


def _decode_scalar(hint: Any, value: object, source: Source, key: str) -> Any:
    # bool is a subclass of int: true must not pass for 1
    if isinstance(value, bool) and hint is not bool:
        raise source.refuse(key, _NAMES[hint], value)
    if hint is float and isinstance(value, (int, float)):
        if abs(value) > 1e308 or not math.isfinite(value):
            raise source.refuse(key, "a finite number", value)
        if float(value) != value:
            raise source.refuse(key, "a number that float64 holds exactly", value)
        return float(value)
    if not isinstance(value, hint):
        raise source.refuse(key, _NAMES[hint], value)
    return value


def _decode_json(value: object, source: Source, key: str, depth: int) -> Any:
    if depth == 0:
        raise source.error(f"{source.label}: {shown(key)} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise source.refuse(f"a key of {key}", "a string", name)
        return {name: _decode_json(item, source, join(key, name), depth - 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_decode_json(item, source, f"{key}[]", depth - 1) for item in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    return _decode_scalar(float, value, source, key)
