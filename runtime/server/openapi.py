"""The description of the API for programs (OpenAPI 3.1), made of what decodes the requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from q2export.runtime.server.http import Handler
from q2export.runtime.server.requests import Object
from q2export.version import __version__

_ABOUT = (
    "Chat and completions in the form of OpenAI's API. The answer to a request does not depend on those "
    "that run beside it."
)


@dataclass(frozen=True)
class Operation:
    """An address of the server.

    Attributes:
        method: of HTTP.
        path: with parameters in braces.
        handler: answers; the first line of its docstring says what it does.
        body: what is sent, if anything.
        generates: it makes the engine work.
        open_to_all: it needs no key.
    """

    method: str
    path: str
    handler: Handler
    body: type[Object] | None = None
    generates: bool = False
    open_to_all: bool = False


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document."""
    bodies = [operation.body for operation in operations if operation.body is not None]
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r":\w+}", "}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "q2export", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": (operation.handler.__doc__ or "").partition("\n")[0],
        "responses": {"200": {"description": "The answer."}, "default": {"description": "An error."}},
    }
    if names := re.findall(r"{(\w+)", operation.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not operation.open_to_all:
        described["security"] = [{"key": []}]
    return described
