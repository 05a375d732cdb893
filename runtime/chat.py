"""Chat messages to the text of a prompt, with the checkpoint's own jinja2 template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q2export.errors import ConfigError, GenerationError, MissingDependencyError
from q2export.runtime.tokenizer import TOKENIZER_CONFIG_FILE, read_tokenizer_config

TEMPLATE_FILE = "chat_template.jinja"

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, with whatever else the template reads."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the jinja2 template.
        special_tokens: names the template may use, such as ``eos_token``, and their texts.

    Raises:
        ConfigError: the template has a syntax error.
        MissingDependencyError: jinja2 is not installed.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            from q2export.runtime.chat_sandbox import compile_template
        except ImportError:
            raise MissingDependencyError(
                "chat templates need the package jinja2: pip install jinja2"
            ) from None
        self._template = compile_template(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt for ``messages``.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end with the start of the assistant's turn.
            tools: JSON schemas of functions, for templates that offer them to the model.

        Raises:
            GenerationError: the messages are not plain data with a role each, or the template refuses them.
        """
        from q2export.runtime.chat_sandbox import render

        variables = {
            **self._special_tokens,
            "messages": _checked_messages(messages),
            "tools": None if tools is None else _plain("tools", list(tools)),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self._template, variables)


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of ``chat_template.jinja``, else of ``tokenizer_config.json``; None if neither has one.

    Raises:
        ConfigError: the files are malformed, the template has a syntax error, or several are given and none
            is called ``default``.
        MissingDependencyError: jinja2 is not installed.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            source: object = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{TEMPLATE_FILE}: cannot be read as UTF-8: {error}") from None
    else:
        path = folder / TOKENIZER_CONFIG_FILE
        source = read_tokenizer_config(folder).get("chat_template")
    if isinstance(source, list):  # several templates: [{"name": ..., "template": ...}, ...]
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        if "default" not in named:
            raise ConfigError(f"{path.name}: none of the chat templates is called 'default': {list(named)}")
        source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise ConfigError(f"{path.name}: chat_template must be a string, found {type(source).__name__}")
    return ChatTemplate(source, special_tokens)


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
    return [_plain(f"messages[{number}]", dict(message)) for number, message in enumerate(messages)]


def _plain(name: str, value: object) -> Any:
    """A copy made of JSON types only: a template must not get at the methods of other objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"{name} must be plain data (JSON): {error}") from None
