"""Calls of tools in the hermes form of Qwen2.5, found in a text as it comes.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

Json = dict[str, Any]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


class ToolCallParser:
    """Turns a text that comes in pieces into deltas of content and of calls.

    The arguments of a call are passed on as they come, as the model wrote them. What looks like a call and is
    none stays text. The result does not depend on how the text is cut.
    """

    def __init__(self) -> None:
        self.calls = 0
        """Calls found so far."""
        self._rest = ""  # not yet decided
        self._state = self._text
        self._value = _ObjectEnd()

    def feed(self, piece: str) -> list[Json]:
        """The deltas that are now certain."""
        self._rest += piece
        deltas: list[Json] = []
        while (found := self._state()) is not None:
            deltas += found
        return _joined(deltas)

    def flush(self) -> list[Json]:
        """The last deltas, at the end of the text."""
        rest, self._rest = self._rest, ""
        if self._state == self._call:
            whole = _whole_call(rest)
            return self._whole(whole) if whole else _content(OPEN + rest)
        if self._state == self._text and not (self.calls and rest.isspace()):
            return _content(rest)
        return []

    # Each state takes what it can from the rest and returns deltas; None: it needs more text.

    def _text(self) -> list[Json] | None:
        before, found, after = self._rest.partition(OPEN)
        if found:
            self._rest, self._state = after, self._call
            return _content(before.rstrip())
        certain = len(before) - _undecided(before)
        if certain == 0:
            return None
        self._rest = before[certain:]
        return _content(before[:certain]) or None

    def _call(self) -> list[Json] | None:
        if head := _HEAD.match(self._rest):
            self._rest, self._state, self._value = self._rest[head.end() :], self._arguments, _ObjectEnd()
            return [self._begin(json.loads(head[1]), "")]
        inside, found, after = self._rest.partition(CLOSE)
        if not found:
            return None
        self._rest, self._state = after, self._text
        whole = _whole_call(inside)
        return self._whole(whole) if whole else _content(OPEN + inside + CLOSE)

    def _arguments(self) -> list[Json] | None:
        if not self._rest:
            return None
        end = self._value.find(self._rest)
        text, self._rest = self._rest[:end], self._rest[end:]
        if self._value.ended:
            self._state = self._after
        return [_tool_delta(self.calls - 1, {"arguments": text})]

    def _after(self) -> list[Json] | None:
        _, found, after = self._rest.partition(CLOSE)
        if not found:
            return None
        self._rest, self._state = after, self._text
        return []

    def _begin(self, name: str, arguments: str) -> Json:
        self.calls += 1
        call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return _tool_delta(self.calls - 1, {"name": name, "arguments": arguments}, call)

    def _whole(self, call: tuple[str, str]) -> list[Json]:
        return [self._begin(*call)]


class _ObjectEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = self._escaped = False

    def find(self, piece: str) -> int:
        """How much of the piece belongs to the object."""
        for place, character in enumerate(piece):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
        return len(piece)


def _whole_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call written in another order or layout; None if it is no call."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], json.dumps(arguments, ensure_ascii=False)


def _undecided(text: str) -> int:
    """Length of the end of ``text`` that may be the start of a call, with the white space before it."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if OPEN.startswith(text[-length:]):
            text = text[:-length]
            return length + len(text) - len(text.rstrip())
    return len(text) - len(text.rstrip())


def _content(text: str) -> list[Json]:
    return [{"content": text}] if text else []


def _tool_delta(index: int, function: Json, call: Json | None = None) -> Json:
    return {"tool_calls": [{"index": index, **(call or {}), "function": function}]}


def _joined(deltas: list[Json]) -> list[Json]:
    """Contents that follow each other as one."""
    joined: list[Json] = []
    for delta in deltas:
        if joined and "content" in delta and "content" in joined[-1]:
            joined[-1] = {"content": joined[-1]["content"] + delta["content"]}
        else:
            joined.append(delta)
    return joined


def parsed_arguments(arguments: str) -> Any:
    """The arguments of a call as an object, which templates write; what is no object stays a text."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
