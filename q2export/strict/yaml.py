"""YAML without its surprises, for the small data files people write by hand.

Only what JSON can say, plus comments: no tags, no aliases (so no "billion laughs"), no duplicate keys, and of
plain scalars only ``null``, ``true``/``false``, decimal integers and decimal numbers are anything but
strings. PyYAML by itself follows YAML 1.1, where ``no`` is false, ``010`` is 8, ``1:30`` is 90 and ``1e-3``
is a string.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from q2export.errors import Q2ExportError

_MAX_BYTES = 64 << 10  # PyYAML takes ten seconds for a megabyte
_INTEGER = r"-?(?:0|[1-9][0-9]*)"


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not supported", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refused("tags are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Read a mapping; refuse a key that is given twice or is not a plain word."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused("a key must be a plain word", key_node.start_mark)
            if key_node.value in seen:
                raise _refused(f"key {key_node.value!r} is given twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _resolve(kind: str, pattern: str, first: list[str]) -> None:
    """Let plain scalars that match ``pattern`` and start with one of ``first`` be of a kind."""
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), first)


_DIGITS = list("-0123456789")
_resolve("null", r"null|~|", ["n", "~", ""])
_resolve("bool", r"true|false", ["t", "f"])
_resolve("int", _INTEGER, _DIGITS)
_resolve("float", rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", _DIGITS)


def parse_yaml(text: str, label: str, error: type[Q2ExportError]) -> object:
    """Parse one document of the subset described above.

    Raises:
        Q2ExportError: ``error``, starting with ``label`` and naming line and column.
    """
    try:
        # a SafeLoader restricted further: no tag can name a Python object
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{label}{place}: {problem.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise error(f"{label}: cannot be read as YAML: {problem}") from None


def read_yaml(path: Path, error: type[Q2ExportError]) -> object:
    """Read and parse a regular file of at most 64 KiB; ``error`` as in :func:`parse_yaml`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise error(f"{path}: expected a regular file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise error(f"{path}: larger than 64 KiB, which no profile is")
        return parse_yaml(data.decode("utf-8"), str(path), error)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text (byte {problem.start})") from None
