"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from q2export.runtime.results import TokenEvent, TokenLogprobs
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.generations import Generations
from q2export.runtime.server.http import as_api_error, json_response, read_body
from q2export.runtime.server.logprobs import CompletionLogprobs
from q2export.runtime.server.prompts import text_prompt
from q2export.runtime.server.requests import CompletionRequest, decode
from q2export.runtime.server.sampling import generation_options, new_token_limit
from q2export.runtime.server.scoring import prompt_logprobs
from q2export.runtime.server.service import ServedModel, Service
from q2export.runtime.server.sse import DONE, EventStream, frame, unless_gone
from q2export.runtime.server.structured import answer_grammar
from q2export.runtime.server.usage import Usage
from q2export.version import __version__

Json = dict[str, Any]


class _Choice:
    """One text: its tokens to the choices of chunks.

    Args:
        number: its index.
        echo: of the prompt, its text and the log probabilities of its tokens, if those are asked for.
        logprobs: writes log probabilities; None writes none.
        token_ids: every chunk has those of its tokens.
    """

    def __init__(
        self, number: int, echo: _Echo | None, logprobs: CompletionLogprobs | None, token_ids: bool
    ) -> None:
        self._number = number
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._echo = echo

    def feed(self, event: TokenEvent | None) -> list[Json]:
        """The choice of the chunk that a token makes, if it makes one; None: nothing was to be generated."""
        text, tokens = "", []
        if self._echo is not None:
            text, tokens, self._echo = self._echo.text, list(self._echo.tokens), None
        reason: str | None = "length"
        if event is not None:
            text += event.text
            tokens.append((event.token_id, event.logprobs))
            reason = None if event.result is None else event.result.finish_reason
        logprobs = None if self._logprobs is None else self._logprobs.body(tokens)
        if not text and reason is None and logprobs is None and not self._token_ids:
            return []
        chunk: Json = {"text": text, "index": self._number, "logprobs": logprobs, "finish_reason": reason}
        if self._token_ids:
            chunk["token_ids"] = [] if event is None else [event.token_id]
        return [chunk]


@dataclass
class _Echo:
    """A prompt that is part of the answer, and its tokens once they are scored."""

    text: str
    prompt: list[int]
    tokens: list[tuple[int, TokenLogprobs | None]] = field(default_factory=list)


@dataclass(frozen=True)
class _Completion:
    """A request whose texts are being generated; ``echoes`` are those that are to be scored."""

    model: ServedModel
    request: CompletionRequest
    echoes: list[_Echo]
    generations: Generations
    choices: list[_Choice]
    usage: Usage
    header: Json
    generates: bool


async def completions(service: Service, request: Request) -> Response:
    """Continue one or more prompts, as a stream or in one piece."""
    body = await read_body(service, request)
    generations = Generations(service.metrics)
    with generations:
        completion = await run_in_threadpool(_begin, service, body, generations)
    if completion.request.stream:
        return EventStream(_frames(service, completion), generations.cancel)
    return await unless_gone(request.receive, _whole(service, completion), generations.cancel)


def _begin(service: Service, body: bytes, generations: Generations) -> _Completion:
    """Everything up to the scheduler, in a thread."""
    request = decode(CompletionRequest, body)
    model = service.model(request.model)
    count = request.n or 1
    if request.suffix:
        raise invalid("suffix is not supported", param="suffix")
    if request.best_of not in (None, count):
        raise invalid("best_of is not supported; n asks for several texts", param="best_of")
    prompts = _prompts(model, request, service.options.allow_special_tokens)
    if len(prompts) * count > service.options.max_choices:
        raise invalid(
            f"{len(prompts)} prompts with n = {count} are {len(prompts) * count} texts; one request may ask "
            f"for {service.options.max_choices}",
            param="prompt",
        )
    limit = new_token_limit(request)
    each = [generation_options(request, model.engine, len(prompt), limit) for prompt in prompts]
    grammar = answer_grammar(model, request, [])
    logprobs = None if request.logprobs is None else model.tokenizer("logprobs")
    for prompt, options in zip(prompts, each, strict=True):
        if logprobs is not None:
            options["logprobs"] = request.logprobs
        if limit == 0:
            continue
        generations.submit(
            model, prompt, options, count=count, grammar=grammar, priority=request.priority or 0
        )
    choices: list[_Choice] = []
    echoes: list[_Echo] = []
    for prompt in prompts:
        echo = None
        if request.echo:
            text = model.tokenizer("echo").decode(prompt, skip_special_tokens=False)
            echo = _Echo(text, prompt)
            echoes += [echo] if logprobs is not None else []
        for _ in range(count):
            writer = None if logprobs is None else CompletionLogprobs(logprobs)
            choices.append(_Choice(len(choices), echo, writer, bool(request.return_token_ids)))
    usage = Usage(sum(map(len, prompts)))
    return _Completion(model, request, echoes, generations, choices, usage, _header(model), limit != 0)


def _prompts(model: ServedModel, request: CompletionRequest, special_tokens: bool) -> list[list[int]]:
    prompt = request.prompt
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    prompts: list[list[int]] = []
    for place, each in enumerate(several):
        ids: Any = each
        if isinstance(each, str):
            ids = text_prompt(
                model.engine,
                each,
                add_special_tokens=request.add_special_tokens is not False,
                special_tokens=special_tokens,
            )
        prompts.append(_checked(model, ids, "prompt" if len(several) == 1 else f"prompt[{place}]"))
    return prompts


def _checked(model: ServedModel, ids: Any, where: str) -> list[int]:
    if not ids:
        raise invalid(f"{where} is empty: at least one token is needed to continue from", param="prompt")
    most = model.engine.backend.vocab_size - 1
    if max(ids) > most:
        raise invalid(f"{where}: token id {max(ids)} is outside the vocabulary, 0 to {most}", param="prompt")
    return list(ids)


async def _score(service: Service, completion: _Completion) -> None:
    """The log probabilities of prompts, where they are asked for; the server scores one after the other."""
    loop = asyncio.get_running_loop()
    for echo in completion.echoes:
        top = completion.request.logprobs or 0
        found = await loop.run_in_executor(
            service.scoring, prompt_logprobs, completion.model, echo.prompt, top
        )
        echo.tokens = list(zip(echo.prompt, found, strict=True))


def _header(model: ServedModel) -> Json:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": f"q2export-{__version__}",
    }


async def _chunks(service: Service, completion: _Completion) -> AsyncGenerator[list[Json], None]:
    """Choices of chunks as they come, those of each token in their order."""
    await _score(service, completion)
    if not completion.generates:
        yield [chunk for choice in completion.choices for chunk in choice.feed(None)]
        return
    async for arrivals in completion.generations.arrivals():
        for arrival in arrivals:
            completion.usage.add(arrival.event)
        yield [
            chunk for arrival in arrivals for chunk in completion.choices[arrival.choice].feed(arrival.event)
        ]


async def _whole(service: Service, completion: _Completion) -> Response:
    merged: list[Json] = [{} for _ in completion.choices]
    async for chunks in _chunks(service, completion):
        for chunk in chunks:
            merged[chunk["index"]] = _merge(merged[chunk["index"]], chunk)
    return json_response({**completion.header, "choices": merged, "usage": completion.usage.body()})


def _merge(choice: Json, chunk: Json) -> Json:
    if not choice:
        return chunk
    logprobs = choice["logprobs"]
    if logprobs is not None:
        logprobs = {name: values + chunk["logprobs"][name] for name, values in logprobs.items()}
    merged = {**chunk, "text": choice["text"] + chunk["text"], "logprobs": logprobs}
    if "token_ids" in choice:
        merged["token_ids"] = choice["token_ids"] + chunk["token_ids"]
    return merged


async def _frames(service: Service, completion: _Completion) -> AsyncGenerator[bytes, None]:
    """The events of a stream; an error after its beginning is one of them."""
    options = completion.request.stream_options
    asked = options is not None and bool(options.include_usage)
    extra: Json = {"usage": None} if asked else {}
    try:
        async for chunks in _chunks(service, completion):
            if chunks:
                yield b"".join(frame({**completion.header, "choices": [chunk], **extra}) for chunk in chunks)
        if asked:
            yield frame({**completion.header, "choices": [], "usage": completion.usage.body()})
    except Exception as error:  # noqa: BLE001 - the status has been sent: the client is told in the stream
        yield frame(as_api_error(error).body())
    yield DONE
