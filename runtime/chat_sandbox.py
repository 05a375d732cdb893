"""Where chat templates run. A template is code that came with a checkpoint.

It runs in jinja2's immutable sandbox, bounded in time and memory (``chat_bounds``), and is given plain data
only. Otherwise the environment is the one templates are written for, that of transformers
(``utils/chat_template_utils.py``), so that they render byte for byte the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.chat_bounds import BoundedEnvironment, budget

_MOST_SOURCE = 1 << 18  # characters; the longest published templates have a tenth of that


def compile_template(source: str, where: str) -> jinja2.Template:
    """Compile a chat template.

    Args:
        source: the template.
        where: it comes from, for messages.

    Raises:
        ConfigError: it cannot be compiled; of a syntax error with its line.
    """
    if len(source) > _MOST_SOURCE:
        raise ConfigError(
            f"{where}: the chat template has {len(source)} characters, the most allowed is {_MOST_SOURCE}"
        )
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_new_dict,
        namespace=_PlainNamespace,
    )
    environment.bind()
    try:
        with budget(()):
            return environment.compile_bounded(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{where}: chat template, line {error.lineno}: {error.message}") from None
    except Exception as error:  # noqa: BLE001 - jinja2 and Python's compiler let through what they meet
        raise ConfigError(
            f"{where}: the chat template cannot be compiled: {type(error).__name__}: {error}"
        ) from None


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Run a template.

    Raises:
        GenerationError: the template raised an error, its own or one of Python's, or exceeded its bounds.
    """
    try:
        with budget(variables):
            return template.render(variables)
    except Exception as error:  # code that came with a checkpoint may raise anything
        reason = str(error) or type(error).__name__
        raise GenerationError(f"the chat template refused the messages: {reason}") from error


class _Generation(Extension):
    """``{% generation %}`` to ``{% endgeneration %}`` marks text for training; here it is passed on."""

    tags = {"generation"}  # noqa: RUF012  (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """``namespace()`` without underscore names, which Python itself might look up on the object."""

    def __init__(self, *pairs: Any, **attributes: Any) -> None:
        super().__init__()
        for name, value in dict(*pairs, **attributes).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} starts with an underscore")
        super().__setitem__(name, value)


def _new_dict(*pairs: Any, **items: Any) -> dict[Any, Any]:
    """``dict(a=1)``: a function, because the type itself has more attributes than a template needs."""
    return dict(*pairs, **items)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
