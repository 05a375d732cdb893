"""What goes back to the client of one request to Triton."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from q2export.errors import CancelledError
from q2export.runtime.results import TokenEvent
from q2export.runtime.scheduler import ScheduledGeneration
from q2export.runtime.server.http import as_api_error

_log = logging.getLogger(__name__)
_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 429: "UNAVAILABLE", 503: "UNAVAILABLE"}


class Answer:
    """The answer to one request, sent in one piece or as a stream; every token is in it once.

    Args:
        pb_utils: the module ``triton_python_backend_utils`` of the backend.
        sender: of the request.

    Attributes:
        stream: send text as it comes.
        by_token: in a stream, send each token: there is no text.
        generation: that answers, once it is begun.
        done: whether the last response was sent.
    """

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._pb_utils = pb_utils
        self._sender = sender
        self._text = ""
        self._token_ids: list[int] = []
        self.stream = False
        self.by_token = False
        self.generation: ScheduledGeneration | None = None
        self.done = False

    def repeat(self, prompt: str) -> None:
        """Begin the text with that of the prompt."""
        self._text = prompt

    def feed(self, event: TokenEvent) -> None:
        """Take a token; send what there is, if it is to be sent now."""
        self._text += event.text
        self._token_ids.append(event.token_id)
        if event.result is not None:
            self._send(event.result.finish_reason)
        elif self.stream and (event.text or self.by_token):
            self._send(None)

    def fail(self, error: Exception) -> None:
        """Send an error as the last response, unless the last one was sent."""
        if self.done:
            return
        if isinstance(error, CancelledError):
            message, code = str(error), "CANCELLED"
        else:
            refusal = as_api_error(error)
            message, code = refusal.message, _CODES.get(refusal.status, "INTERNAL")
        failure = self._pb_utils.TritonError(message, getattr(self._pb_utils.TritonError, code))
        self._finish(self._pb_utils.InferenceResponse(output_tensors=[], error=failure))

    def end_if_cancelled(self) -> None:
        """End the generation if the client has gone away."""
        if self.generation is not None and not self.generation.cancelled and self._sender.is_cancelled():
            self.generation.cancel()

    def _send(self, finish_reason: str | None) -> None:
        """What came since the last response; with a reason, as the last one."""
        tensor = self._pb_utils.Tensor
        tensors = [
            tensor("text_output", np.array([self._text.encode()], np.object_)),
            tensor("output_ids", np.array(self._token_ids, np.int32)),
        ]
        self._text, self._token_ids = "", []
        if finish_reason is None:
            self._sender.send(self._pb_utils.InferenceResponse(output_tensors=tensors))
            return
        tensors.append(tensor("finish_reason", np.array([finish_reason.encode()], np.object_)))
        self._finish(self._pb_utils.InferenceResponse(output_tensors=tensors))

    def _finish(self, response: Any) -> None:
        self.done = True
        self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
