"""What a request to Triton asks for: a prompt, and parameters named as in ``/v1/completions``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from q2export.errors import GenerationError
from q2export.runtime.options import OptionKeywords
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.requests import Request, decode
from q2export.runtime.server.sampling import generation_options, new_token_limit
from q2export.runtime.server.service import ServedModel
from q2export.runtime.server.structured import answer_grammar
from q2export.runtime.structured import Grammar
from q2export.strict.json import parse_object
from q2export.strict.suggest import nearest

_ELSEWHERE = {
    "model": "it is in the address of the request",
    "stream": "it is an input of its own",
    "stream_options": "the last answer has a finish_reason",
    "n": "a request makes one text; send several, which share their prompt",
}


class SamplingParameters(Request):
    """The input ``sampling_parameters``: fields of vLLM of this name, in JSON."""

    max_tokens: int | None = Field(default=16, ge=1)  # as in vLLM's backend


def read_parameters(text: str) -> SamplingParameters:
    """Parameters from their JSON.

    Raises:
        ApiError: naming the field that is unknown, of a wrong type or out of its range.
        GenerationError: it is not a JSON object.
    """
    names = SamplingParameters.model_fields
    for name in parse_object(text.encode(), "sampling_parameters", GenerationError):
        if name not in names:
            raise invalid(f"sampling_parameters: no parameter {name!r}{nearest(name, names)}", param=name)
    parameters = decode(SamplingParameters, text.encode())
    for name, reason in _ELSEWHERE.items():
        if getattr(parameters, name) is not None:
            raise invalid(f"sampling_parameters: {name} has no effect: {reason}", param=name)
    return parameters


def options_of(
    model: ServedModel, parameters: SamplingParameters, prompt: list[int]
) -> tuple[OptionKeywords, Grammar | None]:
    """Options of generation, and the grammar of the text if it is to have one.

    Raises:
        ApiError: the prompt and the text do not fit, or the grammar cannot be had.
    """
    options = generation_options(parameters, model.engine, len(prompt), new_token_limit(parameters))
    return options, answer_grammar(model, parameters, [])


def input_text(name: str, value: Any) -> str:
    """The text of an input.

    Raises:
        ApiError: it is not UTF-8.
    """
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise invalid(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
