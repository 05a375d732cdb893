"""The ASGI application: engines in, an OpenAI-compatible service out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from q2export.runtime.engine import Engine
from q2export.runtime.scheduler import Scheduler, SchedulerOptions
from q2export.runtime.server.chat import chat_completions
from q2export.runtime.server.completions import completions
from q2export.runtime.server.http import Endpoint, http_error, json_response
from q2export.runtime.server.models import embeddings, list_models, live, metrics, one_model, ready
from q2export.runtime.server.openapi import Operation, openapi
from q2export.runtime.server.options import ServerOptions
from q2export.runtime.server.pages import chat_page, docs_page
from q2export.runtime.server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from q2export.runtime.server.service import ServedModel, Service
from q2export.runtime.server.text import detokenize, tokenize, tokenizer_info
from q2export.runtime.structured import Grammars


def create_app(
    engines: Mapping[str, Engine],
    options: ServerOptions | None = None,
    scheduling: SchedulerOptions | None = None,
) -> Starlette:
    """An application that serves loaded engines, each by its name.

    It runs under any ASGI server. Its lifespan starts a scheduler for each engine and ends them; the engines
    stay open.

    Args:
        engines: by the name that requests give as ``model``; at least one.
        options: of the application.
        scheduling: of each engine's scheduler; they share its ``memory_share``.
    """
    scheduling = scheduling or SchedulerOptions()
    share = replace(scheduling, memory_share=scheduling.memory_share / max(len(engines), 1))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with ExitStack() as stack:
            models = {}
            for name, engine in engines.items():
                scheduler = stack.enter_context(Scheduler(engine, share))
                models[name] = ServedModel(name, engine, scheduler, Grammars(engine))
            app.state.service = service = Service(models, options or ServerOptions())
            yield
            service.scoring.shutdown(cancel_futures=True)

    return Starlette(
        routes=list(map(_route, OPERATIONS)),
        lifespan=lifespan,
        exception_handlers={HTTPException: http_error},
    )


async def _openapi(service: Service, request: Request) -> Response:
    """This description."""
    return json_response(openapi(OPERATIONS))


OPERATIONS = (
    Operation("POST", "/v1/chat/completions", chat_completions, ChatRequest, generates=True),
    Operation("POST", "/v1/completions", completions, CompletionRequest, generates=True),
    Operation("POST", "/v1/embeddings", embeddings),
    Operation("GET", "/v1/models", list_models),
    Operation("GET", "/v1/models/{name:path}", one_model),
    Operation("POST", "/tokenize", tokenize, TokenizeRequest),
    Operation("POST", "/detokenize", detokenize, DetokenizeRequest),
    Operation("GET", "/tokenizer_info", tokenizer_info),
    Operation("GET", "/health", ready, open_to_all=True),
    Operation("GET", "/health/live", live, open_to_all=True),
    Operation("GET", "/health/ready", ready, open_to_all=True),
    Operation("GET", "/metrics", metrics, open_to_all=True),
    Operation("GET", "/openapi.json", _openapi, open_to_all=True),
    Operation("GET", "/docs", docs_page, open_to_all=True),
    Operation("GET", "/", chat_page, open_to_all=True),
)
"""All addresses of an application."""


def _route(operation: Operation) -> Route:
    endpoint = Endpoint(operation.handler, generates=operation.generates, open_to_all=operation.open_to_all)
    return Route(operation.path, endpoint, methods=[operation.method])
