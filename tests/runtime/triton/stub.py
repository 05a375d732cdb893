"""As much of ``triton_python_backend_utils`` as a model uses, without Triton."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


@dataclass
class Tensor:
    name: str
    array: npt.NDArray[Any]

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.array


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, NOT_FOUND, CANCELLED = range(5)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def value(self, name: str) -> Any:
        """An output as Python has it; None where the response has none of the name."""
        found = [tensor.array.tolist() for tensor in self.output_tensors if tensor.name == name]
        return found[0] if found else None


@dataclass
class Sender:
    """Keeps what is sent; it must be sent by one thread, and nothing after the last response."""

    responses: list[InferenceResponse] = field(default_factory=list)
    cancelled: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    broken: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.ended.is_set()
        self.responses.append(response)
        self.began.set()
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.ended.set()
        if self.broken:
            raise OSError("the pipe broke")


class Request:
    """A request with inputs by name, in the types of the configuration."""

    def __init__(self, parameters: str = "{}", **inputs: Any) -> None:
        kinds = {"input_ids": np.int32, "stream": np.bool_, "exclude_input_in_output": np.bool_}
        self.tensors = {
            name: Tensor(
                name, np.array(value if isinstance(value, list) else [value], kinds.get(name, np.object_))
            )
            for name, value in inputs.items()
        }
        self.sender = Sender()
        self._parameters = parameters

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return self._parameters

    def answer(self) -> list[InferenceResponse]:
        """All responses, once the last one has come."""
        assert self.sender.ended.wait(60)
        return self.sender.responses

    def text(self) -> str:
        """The text of all responses, none of which may be an error."""
        assert [response.error for response in self.answer() if response.error] == []
        return b"".join(response.value("text_output")[0] for response in self.answer()).decode()


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.tensors.get(name)
