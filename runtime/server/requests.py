"""What clients send: the requests of OpenAI's API, and the fields that vLLM's clients add to them.

A field that is not declared is ignored, as clients of later versions expect; a declared one of a wrong type
or out of its range is refused by name. What would change the answer and is not implemented is declared too,
and refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from q2export.runtime.server.errors import ApiError, invalid

RequestT = TypeVar("RequestT", bound="Request")
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0)]


class Object(BaseModel):
    """A JSON object: types are not converted, other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


class StreamOptions(Object):
    """``include_usage`` asks for a last chunk with the number of tokens."""

    include_usage: bool | None = None


class JsonSchemaFormat(Object):
    """A JSON schema that the answer must meet; ``strict`` or not, it always does."""

    name: str
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Object):
    """What the answer must be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Object):
    """vLLM's field: exactly one of a JSON schema, a regular expression, a list of texts, a Lark grammar."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Request(Object):
    """The fields of both kinds of completion. What is absent comes from ``generation_config.json``."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    # Not OpenAI's; named as in vLLM.
    structured_outputs: StructuredOutputs | None = None
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    priority: int | None = None


class TextPart(Object):
    """A part of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Object):
    """A call that the model asked for; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(Object):
    """A call in a message of the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Object):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Object):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Object):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: Function


class NamedFunction(Object):
    """The name of a function."""

    name: str


class NamedTool(Object):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # Refused: each would change the answer.
    functions: Any = None
    function_call: Any = None
    audio: Any = None


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``; a prompt is text or token ids, or a list of either."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    # Not OpenAI's; named as in vLLM.
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    # Refused: each would change the answer.
    suffix: str | None = None
    best_of: int | None = None


class TokenizeRequest(Object):
    """The body of ``POST /tokenize``: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Object):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: list[TokenId]


ObjectT = TypeVar("ObjectT", bound=Object)


def decode(kind: type[ObjectT], body: bytes) -> ObjectT:
    """The request of a body.

    Raises:
        ApiError: 400, naming the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    """The first wrong field; of a union, as its deepest problem has it: that of the kind which was meant."""
    problems = error.errors(include_url=False, include_context=False)
    first = _path(problems[0]["loc"])
    path, problem = max(
        ((path, each) for each in problems if (path := _path(each["loc"])).startswith(first)),
        key=lambda found: (len(found[0]), not found[1]["type"].endswith("_type")),
    )
    if problem["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}")
    if problem["type"] == "missing":
        return invalid(f"{path} is missing", param=path)
    if not path:
        return invalid("the body must be a JSON object")
    found = repr(problem["input"])
    found = found if len(found) <= _MOST_FOUND else f"{found[:_MOST_FOUND]}..."
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return invalid(f"{path}: {message}, found {found}", param=path)


def _path(location: tuple[int | str, ...]) -> str:
    """``messages[0].content``: pydantic's location without the branches of unions."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", NamedTool.__name__) and not part.startswith(_BRANCHES):
            path += f".{part}" if path else part
    return path


_BRANCHES = ("constrained-", "list[", "dict[", "literal[")
_MOST_FOUND = 80  # characters
