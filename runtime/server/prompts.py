"""From what a client sends to token ids. Text of a client never becomes a special token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from q2export.errors import GenerationError
from q2export.runtime.control_tokens import encode_text
from q2export.runtime.engine import Engine
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.requests import Message, Tool
from q2export.runtime.server.tools import parsed_arguments

_ROLES = {"developer": "system"}


def chat_prompt(engine: Engine, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
    """Token ids of a conversation, up to the start of the answer.

    Raises:
        ApiError: a message lacks what its role needs, or the model's template has no place for tools.
        GenerationError: the template refuses the messages, or the package has none.
    """
    if tools and engine.chat_template is not None and "tools" not in engine.chat_template.source:
        raise invalid("this model's chat template has no place for tools", param="tools")
    plain = [_plain(place, message) for place, message in enumerate(messages)]
    offered = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools or ()]
    try:
        return engine.chat_prompt(plain, tools=offered or None, sanitize_control_tokens=True)
    except GenerationError as error:
        raise invalid(str(error), param="messages") from None


def text_prompt(engine: Engine, text: str, *, add_special_tokens: bool, special_tokens: bool) -> list[int]:
    """Token ids of a text.

    Args:
        engine: with a tokenizer.
        text: of the prompt.
        add_special_tokens: add what the tokenizer puts around a text, such as a BOS token.
        special_tokens: the text of a special token becomes that token.

    Raises:
        ApiError: there is no tokenizer, or the text is too long or cannot be encoded.
    """
    if engine.tokenizer is None:
        raise invalid("this model has no tokenizer: send token ids", param="prompt")
    most = engine.backend.max_capacity
    try:
        if special_tokens:
            return engine.tokenizer.encode(text, add_special_tokens=add_special_tokens, most_tokens=most)
        return encode_text(engine.tokenizer, text, add_special_tokens=add_special_tokens, most_tokens=most)
    except GenerationError as error:
        raise invalid(str(error), param="prompt") from None


def _plain(place: int, message: Message) -> dict[str, Any]:
    """A message as chat templates read it: text in one piece, the arguments of calls as objects."""
    where = f"messages[{place}]"
    content = message.content
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise invalid(f"{where}.content is missing", param=f"{where}.content")
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    plain: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {
                    "name": call.function.name,
                    "arguments": parsed_arguments(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return plain
