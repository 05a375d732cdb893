"""What all endpoints share: the models by name, the settings, and whether the server still takes requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from q2export.runtime.engine import Engine
from q2export.runtime.scheduler import Scheduler
from q2export.runtime.server.errors import ApiError, draining, invalid
from q2export.runtime.server.metrics import Metrics
from q2export.runtime.server.options import ServerOptions
from q2export.runtime.structured import Grammars
from q2export.runtime.tokenizer import Tokenizer

_POLL = 0.05  # seconds


@dataclass(frozen=True)
class ServedModel:
    """An engine with the scheduler that runs it."""

    name: str
    engine: Engine
    scheduler: Scheduler
    grammars: Grammars
    created: int = field(default_factory=lambda: int(time.time()))

    def tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer, which ``what`` needs.

        Raises:
            ApiError: the package has none.
        """
        if self.engine.tokenizer is None:
            raise invalid(f"{what} needs a tokenizer, and this model has none", param=what)
        return self.engine.tokenizer

    @property
    def capacity(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.engine.backend.max_capacity


class Service:
    """The models of one application.

    Args:
        models: by name, at least one.
        options: of the application.
    """

    def __init__(self, models: Mapping[str, ServedModel], options: ServerOptions) -> None:
        self.models = dict(models)
        self.options = options
        self.metrics = Metrics({name: model.scheduler.statistics for name, model in models.items()})
        self.draining = False
        # Scoring runs beside the scheduler's steps and must not crowd them out.
        self.scoring = ThreadPoolExecutor(1, "q2export-scoring")
        self.active = 0
        """Requests that are being answered."""

    def model(self, name: str | None) -> ServedModel:
        """The model of a request; a server of one model serves it to requests that name none.

        Raises:
            ApiError: 404, or 400 where one must be named.
        """
        if name is None:
            if len(self.models) == 1:
                return next(iter(self.models.values()))
            raise invalid(f"model is missing: name one of {', '.join(self.models)}", param="model")
        if name not in self.models:
            raise ApiError(
                404,
                f"there is no model {name!r}; this server has {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    async def drain(self, seconds: float) -> None:
        """Take no more requests, finish those that run, and end what is not done in time."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        for model in self.models.values():
            await asyncio.to_thread(model.scheduler.close)

    def check_open(self) -> None:
        """Refuse new work while what runs is finished.

        Raises:
            ApiError: 503.
        """
        if self.draining:
            raise draining()
