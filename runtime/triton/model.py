"""The model that Triton's Python backend runs: a scheduler whose answers it sends."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from q2export.errors import CancelledError, Q2ExportError
from q2export.runtime import load
from q2export.runtime.results import TokenEvent
from q2export.runtime.scheduler import Scheduler, SchedulerOptions
from q2export.runtime.server.errors import generation_failed, invalid
from q2export.runtime.server.prompts import text_prompt
from q2export.runtime.server.service import ServedModel
from q2export.runtime.structured import Grammars
from q2export.runtime.triton.answer import Answer
from q2export.runtime.triton.parameters import input_text, options_of, read_parameters
from q2export.runtime.triton.settings import ModelSettings

_log = logging.getLogger(__name__)
_POLL = 0.1  # seconds between two looks for clients that went away
_Message = tuple[Answer, TokenEvent | Exception | None]
"""Of an answer: that it was begun, a token, or what ended it."""


class Model:
    """One model of a repository.

    Requests are begun by the thread that Triton calls; one thread of its own sends what comes, so that the
    scheduler waits for nobody.

    Args:
        pb_utils: the module ``triton_python_backend_utils`` of the backend.
        args: what Triton gives to ``initialize``.

    Raises:
        Q2ExportError: the package cannot be loaded here; Triton shows the message and serves nothing.
    """

    def __init__(self, pb_utils: Any, args: Mapping[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        settings = ModelSettings.of(json.loads(args["model_config"]), folder)
        self._pb_utils = pb_utils
        self._special_tokens = settings.allow_special_tokens
        self._engine = load(settings.package, threads=settings.threads)
        options = SchedulerOptions(rows=settings.rows, queue_limit=settings.max_queue)
        scheduler = Scheduler(self._engine, options)
        self._model = ServedModel(args["model_name"], self._engine, scheduler, Grammars(self._engine))
        self._messages: SimpleQueue[_Message | None] = SimpleQueue()
        self._running: set[Answer] = set()  # the sender's own
        self._sender = threading.Thread(target=self._send, name="q2export-triton", daemon=True)
        self._sender.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin what the requests ask for. What is wrong with one is answered to that one."""
        for request in requests:
            answer = Answer(self._pb_utils, request.get_response_sender())
            try:
                self._begin(request, answer)
            except Exception as error:  # noqa: BLE001 - it is the answer; others of the batch are not harmed
                self._messages.put((answer, error))

    def close(self) -> None:
        """End what runs with an error, and free the engine."""
        self._model.scheduler.close()
        self._messages.put(None)
        self._sender.join()
        self._engine.close()

    def _begin(self, request: Any, answer: Answer) -> None:
        given = self._input(request, "sampling_parameters")
        parameters = read_parameters(
            request.parameters() if given is None else input_text("sampling_parameters", given)
        )
        prompt = self._prompt(request, answer)
        options, grammar = options_of(self._model, parameters, prompt)
        answer.by_token = self._engine.tokenizer is None

        def on_end(error: Q2ExportError | None) -> None:
            if error is not None:
                cancelled = isinstance(error, CancelledError)
                self._messages.put((answer, error if cancelled else generation_failed(error)))

        answer.generation = self._model.scheduler.submit(
            prompt,
            priority=parameters.priority or 0,
            processor=None if grammar is None else grammar.processor(),
            on_event=lambda event: self._messages.put((answer, event)),
            on_end=on_end,
            **options,
        )
        self._messages.put((answer, None))

    def _prompt(self, request: Any, answer: Answer) -> list[int]:
        """Token ids of the prompt; what is said of the form of the answer is told to the answer."""
        given, ids = self._input(request, "text_input"), self._values(request, "input_ids")
        if (given is None) == (ids is None):
            raise invalid("a request has either text_input or input_ids as its prompt")
        answer.stream = bool(self._input(request, "stream"))
        exclude = self._input(request, "exclude_input_in_output")
        if answer.stream and exclude is not None and not exclude:
            raise invalid("exclude_input_in_output cannot be false in a stream, which holds new text alone")
        if given is not None:
            text = input_text("text_input", given)
            ids = text_prompt(
                self._engine, text, add_special_tokens=True, special_tokens=self._special_tokens
            )
            if not answer.stream and not exclude:
                answer.repeat(text)
        return list(map(int, self._engine.token_ids(ids or [])))

    def _values(self, request: Any, name: str) -> list[Any] | None:
        tensor = self._pb_utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else list(tensor.as_numpy().reshape(-1).tolist())

    def _input(self, request: Any, name: str) -> Any:
        """The one element of an input; None where the request has none."""
        values = self._values(request, name)
        return values[0] if values else None

    def _send(self) -> None:
        """Send what comes, until the model is closed."""
        looked = time.monotonic()
        while True:
            with suppress(Empty):
                message = self._messages.get(timeout=_POLL if self._running else None)
                if message is None:
                    return
                self._deliver(*message)
            if time.monotonic() - looked > _POLL:
                for answer in self._running:
                    answer.end_if_cancelled()
                looked = time.monotonic()

    def _deliver(self, answer: Answer, news: TokenEvent | Exception | None) -> None:
        try:
            if isinstance(news, TokenEvent):
                answer.feed(news)
            elif news is not None:
                answer.fail(news)
        except Exception:  # noqa: BLE001 - of one response: the thread serves the others
            _log.exception("a response could not be sent")
            if answer.generation is not None:
                answer.generation.cancel()
        if answer.done:
            self._running.discard(answer)
        else:
            self._running.add(answer)
