"""What a server says of itself: ``/v1/models``, its health, ``/metrics``; and what it refuses."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from q2export.runtime.server.errors import draining, invalid
from q2export.runtime.server.http import json_response
from q2export.runtime.server.metrics import CONTENT_TYPE
from q2export.runtime.server.service import ServedModel, Service


async def list_models(service: Service, request: Request) -> Response:
    """The models by name."""
    return json_response({"object": "list", "data": [_body(model) for model in service.models.values()]})


async def one_model(service: Service, request: Request) -> Response:
    """One model; 404 if there is none of the name."""
    return json_response(_body(service.model(request.path_params["name"])))


async def embeddings(service: Service, request: Request) -> Response:
    """Refused: the engines are made to generate and give no hidden states."""
    raise invalid(
        "this server generates text: its engines give no hidden states, thus no embeddings; use an "
        "embedding model's server",
        code="embeddings_not_supported",
    )


async def live(service: Service, request: Request) -> Response:
    """200 while the process answers."""
    return json_response({"status": "live"})


async def ready(service: Service, request: Request) -> Response:
    """200 where a request would be taken, 503 where it would not."""
    if service.draining:
        raise draining()
    return json_response({"status": "ready", "models": list(service.models)})


async def metrics(service: Service, request: Request) -> Response:
    """What Prometheus scrapes."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _body(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "q2export",
        "max_model_len": model.capacity,
    }
