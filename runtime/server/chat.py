"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from q2export.runtime.server.chat_choice import ChatChoice, ChatMessage
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.generations import Generations
from q2export.runtime.server.http import as_api_error, json_response, read_body
from q2export.runtime.server.logprobs import ChatLogprobs
from q2export.runtime.server.prompts import chat_prompt
from q2export.runtime.server.requests import ChatRequest, Tool, decode
from q2export.runtime.server.sampling import generation_options, new_token_limit
from q2export.runtime.server.service import ServedModel, Service
from q2export.runtime.server.sse import DONE, EventStream, frame, unless_gone
from q2export.runtime.server.structured import answer_grammar
from q2export.runtime.server.tools import ToolCallParser
from q2export.runtime.server.usage import Usage
from q2export.version import __version__

Json = dict[str, Any]


@dataclass(frozen=True)
class _Chat:
    """A chat whose answers are being generated."""

    request: ChatRequest
    generations: Generations
    choices: list[ChatChoice]
    usage: Usage
    header: Json


async def chat_completions(service: Service, request: Request) -> Response:
    """Answer one conversation, as a stream or in one piece."""
    body = await read_body(service, request)
    generations = Generations(service.metrics)
    with generations:
        chat = await run_in_threadpool(_begin, service, body, generations)
    if chat.request.stream:
        return EventStream(_frames(chat), generations.cancel)
    return await unless_gone(request.receive, _whole(chat), generations.cancel)


def _begin(service: Service, body: bytes, generations: Generations) -> _Chat:
    """Everything up to the scheduler, in a thread: decoding, the template, the tokenizer, a grammar."""
    request = decode(ChatRequest, body)
    model = service.model(request.model)
    tools = _offered_tools(request)
    limit = new_token_limit(request)
    prompt = chat_prompt(model.engine, request.messages, tools)
    options = generation_options(request, model.engine, len(prompt), limit)
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
    grammar = answer_grammar(model, request, tools)
    count = request.n or 1
    generations.submit(
        model,
        prompt,
        options,
        count=count,
        grammar=grammar,
        priority=request.priority or 0,
    )
    logprobs = ChatLogprobs(model.tokenizer("logprobs")) if request.logprobs else None
    choices = [ChatChoice(number, ToolCallParser() if tools else None, logprobs) for number in range(count)]
    return _Chat(request, generations, choices, Usage(len(prompt)), _header(model))


def _header(model: ServedModel) -> Json:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": f"q2export-{__version__}",
    }


def _offered_tools(request: ChatRequest) -> list[Tool]:
    """The tools that the model is to see.

    Raises:
        ApiError: fields contradict each other, or are not implemented.
    """
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice"), ("audio", "text")):
        if getattr(request, name) is not None:
            raise invalid(f"{name} is not supported: use {instead}", param=name)
    tools, choice = request.tools or [], request.tool_choice
    if choice in (None, "auto", "none"):
        return [] if choice == "none" else tools
    if not tools:
        raise invalid("tool_choice needs tools", param="tool_choice")
    names = [tool.function.name for tool in tools]
    if not isinstance(choice, str) and choice is not None and choice.function.name not in names:
        raise invalid(
            f"tool_choice.function.name: there is no tool {choice.function.name!r} among {', '.join(names)}",
            param="tool_choice.function.name",
        )
    return tools


async def _whole(chat: _Chat) -> Response:
    messages = [ChatMessage() for _ in chat.choices]
    async for arrivals in chat.generations.arrivals():
        for arrival in arrivals:
            messages[arrival.choice].add(chat.choices[arrival.choice].feed(arrival.event))
            chat.usage.add(arrival.event)
    choices = [message.body(i, bool(chat.request.logprobs)) for i, message in enumerate(messages)]
    return json_response({**chat.header, "choices": choices, "usage": chat.usage.body()})


async def _frames(chat: _Chat) -> AsyncGenerator[bytes, None]:
    """The events of a stream; an error after its beginning is one of them."""
    header = {**chat.header, "object": "chat.completion.chunk"}
    asked = chat.request.stream_options is not None and bool(chat.request.stream_options.include_usage)
    extra: Json = {"usage": None} if asked else {}
    try:
        async for arrivals in chat.generations.arrivals():
            frames = []
            for arrival in arrivals:
                chunks = chat.choices[arrival.choice].feed(arrival.event)
                frames += [frame({**header, "choices": [chunk], **extra}) for chunk in chunks]
                chat.usage.add(arrival.event)
            if frames:
                yield b"".join(frames)
        if asked:
            yield frame({**header, "choices": [], "usage": chat.usage.body()})
    except Exception as error:  # noqa: BLE001 - the status has been sent: the client is told in the stream
        yield frame(as_api_error(error).body())
    yield DONE
