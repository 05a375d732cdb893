"""What the fields of a request ask a text to be, as a grammar."""

from __future__ import annotations

from q2export.errors import GenerationError
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.requests import (
    ChatRequest,
    Request,
    ResponseFormat,
    StructuredOutputs,
    Tool,
)
from q2export.runtime.server.service import ServedModel
from q2export.runtime.server.tool_grammar import tool_grammar
from q2export.runtime.structured import Grammar, Grammars


def answer_grammar(model: ServedModel, request: Request, tools: list[Tool]) -> Grammar | None:
    """The grammar of an answer; None where any text will do.

    Args:
        model: that answers.
        request: a chat or completion request.
        tools: that it may call.

    Raises:
        ApiError: what is asked for contradicts itself, or cannot be had; the reason is in the message.
    """
    wanted = [request.response_format, request.structured_outputs]
    shaped = sum(each is not None and getattr(each, "type", None) != "text" for each in wanted)
    choice = request.tool_choice if isinstance(request, ChatRequest) else None
    forced = bool(tools) and choice not in (None, "auto")
    if shaped == 2:
        raise invalid("response_format and structured_outputs contradict each other", "structured_outputs")
    if shaped and forced:
        raise invalid("response_format has no effect where a tool must be called", "response_format")
    if shaped and request.response_format is not None:
        return _format(model.grammars, request.response_format)
    if shaped and request.structured_outputs is not None:
        return _structured(model.grammars, request.structured_outputs)
    if not tools or not isinstance(request, ChatRequest):
        return None
    functions = [tool.function for tool in tools]
    if choice is not None and not isinstance(choice, str):
        functions = [each for each in functions if each.name == choice.function.name]
    parallel = request.parallel_tool_calls is not False and (choice is None or isinstance(choice, str))
    return tool_grammar(model.grammars, functions, forced=forced, parallel=parallel)


def _format(grammars: Grammars, wanted: ResponseFormat) -> Grammar:
    if wanted.type == "json_object":
        return grammars.json_schema({"type": "object"})
    where = "response_format.json_schema"
    if wanted.json_schema is None:
        raise invalid(f"{where} is missing", where)
    try:
        return grammars.json_schema(wanted.json_schema.schema_)
    except GenerationError as error:
        raise invalid(f"{where}.schema: {error}", f"{where}.schema") from None


def _structured(grammars: Grammars, wanted: StructuredOutputs) -> Grammar:
    given = {name: value for name, value in wanted.model_dump(by_alias=True).items() if value is not None}
    if len(given) != 1:
        raise invalid(
            f"structured_outputs takes exactly one of json, regex, choice and grammar, found {len(given)}",
            "structured_outputs",
        )
    ((name, value),) = given.items()
    compilers = {
        "json": grammars.json_schema,
        "regex": grammars.regex,
        "choice": grammars.choice,
        "grammar": grammars.lark,
    }
    try:
        return compilers[name](value)
    except GenerationError as error:
        raise invalid(f"structured_outputs.{name}: {error}", f"structured_outputs.{name}") from None
