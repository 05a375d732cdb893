"""Grammars that keep a model to the tools it was offered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from q2export.errors import GenerationError
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.requests import Function
from q2export.runtime.server.tools import CLOSE, OPEN
from q2export.runtime.structured import Grammar, Grammars, json_rule

_ANY_OBJECT = {"type": "object"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_grammar(
    grammars: Grammars, functions: Sequence[Function], *, forced: bool, parallel: bool
) -> Grammar:
    """Text with calls of these functions in it.

    A schema that llguidance has not leaves the arguments any JSON object, unless the function is ``strict``.

    Args:
        grammars: of the engine.
        functions: at least one.
        forced: nothing but calls, at least one; else text, and calls where the model begins one.
        parallel: several calls may come.

    Raises:
        ApiError: the schema of a strict function cannot be used.
    """
    schemas = [_schema(grammars, place, function) for place, function in enumerate(functions)]
    bodies = [
        f"{json.dumps(_head(function.name))} {json_rule(schema)}"
        for function, schema in zip(functions, schemas, strict=True)
    ]
    opening, closing = grammars.literal(OPEN), grammars.literal(CLOSE)
    rules = [f'body: ({" | ".join(f"body_{i}" for i in range(len(bodies)))}) "}}\\n" {closing}']
    rules += [f"body_{place}: {body}" for place, body in enumerate(bodies)]
    if forced:
        rules += ['start: call ("\\n" call)*' if parallel else "start: call", f"call: {opening} body"]
    else:
        # A token of its own cannot be part of the text; otherwise the text ends at the first opening.
        head = f"head: TEXT {opening}" if opening == OPEN else f"head[lazy]: TEXT {opening}"
        rules += [f"start: (head body){'*' if parallel else '?'} last", head]
        rules += ["last: TEXT", r"TEXT: /(.|\n)*/"]
    return grammars.lark("%llguidance {}\n" + "\n".join(rules), "the grammar of the tools")


def _head(name: str) -> str:
    return f'\n{{"name": {json.dumps(name)}, "arguments": '


def _schema(grammars: Grammars, place: int, function: Function) -> dict[str, Any]:
    schema = function.parameters or _NO_ARGUMENTS
    try:
        grammars.json_schema(schema)
    except GenerationError as error:
        if function.strict:
            where = f"tools[{place}].function.parameters"
            raise invalid(f"{where}: {error}", param=where) from None
        return _ANY_OBJECT
    return schema
