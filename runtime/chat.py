"""Chat messages to the text of a prompt, with the checkpoint's own jinja2 template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from q2export.errors import ConfigError, GenerationError, MissingDependencyError
from q2export.runtime.tokenizer import TOKENIZER_CONFIG_FILE, read_tokenizer_config

TEMPLATE_FILE = "chat_template.jinja"
_DEFAULT, _WITH_TOOLS = "default", "tool_use"  # names of templates, where a checkpoint has several

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, with whatever else the template reads."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the jinja2 template.
        special_tokens: names the template may use, such as ``eos_token``, and their texts.
        where: it comes from, for messages.
        with_tools: another template, for conversations with tools.

    Raises:
        ConfigError: a template cannot be compiled.
        MissingDependencyError: jinja2 is not installed.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        where: str = TEMPLATE_FILE,
        with_tools: str | None = None,
    ) -> None:
        self.source = f"{source}\0{with_tools or ''}"
        """What the templates are written in."""
        self._special_tokens = dict(special_tokens)
        try:
            from q2export.runtime.chat_sandbox import compile_template
        except ImportError:
            raise MissingDependencyError(
                "chat templates need the package jinja2: pip install jinja2"
            ) from None
        self._template = compile_template(source, where)
        self._with_tools = self._template if with_tools is None else compile_template(with_tools, where)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        mark: Callable[[str], str] | None = None,
    ) -> str:
        """The prompt for ``messages``.

        Args:
            messages: the conversation, oldest first. A field that is None counts as absent, as in
                transformers.
            add_generation_prompt: end with the start of the assistant's turn.
            tools: JSON schemas of functions, for templates that offer them to the model.
            mark: applied to every text of the messages and tools before the template gets it.

        Raises:
            GenerationError: the messages are not plain data with a role each, or the template refuses them.
        """
        from q2export.runtime.chat_sandbox import render

        given = {
            "messages": _checked_messages(messages),
            "tools": None if tools is None else _plain("tools", list(tools)),
        }
        variables = {
            **self._special_tokens,
            **(given if mark is None else _mapped(mark, given)),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self._template if tools is None else self._with_tools, variables)


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of ``chat_template.jinja``, else of ``tokenizer_config.json``; None if neither has one.

    Raises:
        ConfigError: the files are malformed, the template cannot be compiled, or several are given and none
            is called ``default``.
        MissingDependencyError: jinja2 is not installed.
    """
    path = folder / TEMPLATE_FILE
    with_tools: object = None
    if path.is_file():
        try:
            source: object = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as UTF-8: {error}") from None
    else:
        path = folder / TOKENIZER_CONFIG_FILE
        source = read_tokenizer_config(folder).get("chat_template")
    if isinstance(source, list):  # several templates: [{"name": ..., "template": ...}, ...]
        named = {str(each.get("name")): each.get("template") for each in source if isinstance(each, dict)}
        if _DEFAULT not in named:
            raise ConfigError(
                f"{path}: none of the chat templates is called {_DEFAULT!r}: {', '.join(named) or 'none'}"
            )
        source, with_tools = named[_DEFAULT], named.get(_WITH_TOOLS)
    if source is None:
        return None
    for template in (source, with_tools or ""):
        if not isinstance(template, str):
            raise ConfigError(f"{path}: chat_template must be a string, found {type(template).__name__}")
    return ChatTemplate(
        str(source),
        special_tokens,
        where=str(path),
        with_tools=None if with_tools is None else str(with_tools),
    )


def _checked_messages(messages: Sequence[Message]) -> list[Any]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise GenerationError(
            f"messages must be a list of at least one message, found {type(messages).__name__}; "
            'for example [{"role": "user", "content": "Hello"}]'
        )
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise GenerationError(
                f'messages[{number}] must be an object with a text "role", found {message!r}'
            )
    return [
        _plain(f"messages[{number}]", {key: value for key, value in message.items() if value is not None})
        for number, message in enumerate(messages)
    ]


def _plain(name: str, value: object) -> Any:
    """A copy made of JSON types only: a template must not get at the methods of other objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"{name} must be plain data (JSON): {error}") from None


def _mapped(mark: Callable[[str], str], value: Any) -> Any:
    """The value with ``mark`` applied to every text in it; the keys of objects stay."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {key: _mapped(mark, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(mark, item) for item in value]
    return value
