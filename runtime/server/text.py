"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, as vLLM has them and evaluation harnesses ask."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from q2export.runtime.server.errors import invalid
from q2export.runtime.server.http import json_response, read_body
from q2export.runtime.server.prompts import chat_prompt, text_prompt
from q2export.runtime.server.requests import DetokenizeRequest, TokenizeRequest, decode
from q2export.runtime.server.service import Service


async def tokenize(service: Service, request: Request) -> Response:
    """Token ids of a text or of a conversation, exactly those that a completion of it would start from."""
    body = await read_body(service, request)
    return json_response(await run_in_threadpool(_tokenize, service, body))


async def detokenize(service: Service, request: Request) -> Response:
    """The text of token ids."""
    body = await read_body(service, request)
    return json_response(await run_in_threadpool(_detokenize, service, body))


async def tokenizer_info(service: Service, request: Request) -> Response:
    """What a client needs to write prompts itself: special tokens, the chat template, the context length."""
    model = service.model(request.query_params.get("model"))
    tokenizer, template = model.tokenizer("model"), model.engine.chat_template
    info: dict[str, Any] = {
        **tokenizer.special_tokens,
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": model.capacity,
        "vocab_size": tokenizer.size,
    }
    if template is not None:
        info["chat_template"] = template.source.partition("\0")[0]
    return json_response(info)


def _tokenize(service: Service, body: bytes) -> dict[str, Any]:
    request = decode(TokenizeRequest, body)
    model = service.model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("one of prompt and messages is needed", param="prompt")
    if request.messages is not None:
        ids = chat_prompt(model.engine, request.messages, request.tools)
    else:
        ids = text_prompt(
            model.engine,
            request.prompt or "",
            add_special_tokens=request.add_special_tokens is not False,
            special_tokens=service.options.allow_special_tokens,
        )
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.capacity, "tokens": ids}
    if request.return_token_strs:
        tokenizer = model.tokenizer("return_token_strs")
        answer["token_strs"] = [tokenizer.token_bytes(token).decode(errors="replace") for token in ids]
    return answer


def _detokenize(service: Service, body: bytes) -> dict[str, Any]:
    request = decode(DetokenizeRequest, body)
    model = service.model(request.model)
    tokenizer = model.tokenizer("tokens")
    largest = max(request.tokens, default=0)
    if largest >= model.engine.backend.vocab_size:
        raise invalid(
            f"tokens: id {largest} is outside the vocabulary, 0 to {model.engine.backend.vocab_size - 1}",
            param="tokens",
        )
    return {"prompt": tokenizer.decode(request.tokens, skip_special_tokens=False)}
