"""Conversations and prompts in which no text of a user becomes a special token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from q2export.errors import GenerationError
from q2export.runtime.chat import ChatTemplate, Message
from q2export.runtime.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF900)


def encode_sanitized(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    most_tokens: int,
) -> list[int]:
    """Token ids of a conversation; control tokens in messages and tools are encoded as the text they are.

    The texts given are marked where they hold the text of a control token, and the rendered prompt is cut
    there, as transformers' ``sanitize_control_tokens`` does (``utils/chat_template_utils.py``). Control
    tokens are the special tokens, and other added tokens that the template writes. A template that joins
    texts of the messages to a control token is not seen through.

    Raises:
        GenerationError: the messages are refused, or a control token cannot be encoded as text.
    """
    control = sorted(tokenizer.control_tokens(template.source), key=len, reverse=True)
    token = "|".join(map(re.escape, control)) or "(?!)"  # (?!) matches nothing
    given = ascii((messages, tools, template.source))
    free = (chr(code) for code in _PRIVATE_USE if f"\\u{code:x}" not in given)
    start, end = next(free, ""), next(free, "")
    if not end:
        raise GenerationError("the messages hold all private-use characters of Unicode; remove one")
    text = template.render(
        messages,
        tools=tools,
        mark=lambda value: re.sub(token, lambda found: f"{start}{found[0]}{end}", value),
    )
    ids: list[int] = []
    # text, control token, text, ..., text; None for the token where the template has parted its markers
    for place, piece in enumerate(re.split(f"{start}({token}){end}|[{start}{end}]", text)):
        if place % 2 == 0 or piece is None:
            ids += tokenizer.encode(piece or "", add_special_tokens=False, most_tokens=most_tokens)
            continue
        as_text = tokenizer.encode_as_text(piece)
        if tokenizer.encode(piece, add_special_tokens=False) == as_text:
            raise GenerationError(f"the tokenizer makes the control token {piece!r} of ordinary text, too")
        ids += as_text
    return ids


def encode_text(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True, most_tokens: int | None = None
) -> list[int]:
    """Token ids of a prompt; the text of a special token in it is encoded as the text it is.

    Args:
        tokenizer: of the engine.
        text: of the prompt.
        add_special_tokens: add what the tokenizer puts around a text, such as an initial BOS token.
        most_tokens: refuse a text that is longer, for certain, before it is encoded.

    Raises:
        GenerationError: as :meth:`~q2export.runtime.tokenizer.Tokenizer.encode`.
    """
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens, most_tokens=most_tokens)
    control = sorted(tokenizer.control_tokens(""), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, control))})", text) if control else [text]
    if len(pieces) == 1:
        return ids
    inner: list[int] = []
    for place, piece in enumerate(pieces):  # text, control token, text, ..., text
        inner += (
            tokenizer.encode_as_text(piece)
            if place % 2
            else tokenizer.encode(piece, add_special_tokens=False)
        )
    if not add_special_tokens:
        return inner
    # What is put around a text is the same for every text.
    bare, whole = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return [*whole[:start], *inner, *whole[start + len(bare) :]]
