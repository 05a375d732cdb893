"""From the fields of a request to the options of generation."""

from __future__ import annotations

from q2export.runtime.engine import Engine
from q2export.runtime.options import OptionKeywords
from q2export.runtime.server.errors import invalid
from q2export.runtime.server.requests import ChatRequest, CompletionRequest, Request

_COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
_SEEDS = 1 << 64  # numpy's are not negative, OpenAI's may be


def generation_options(
    request: Request, engine: Engine, prompt_tokens: int, new_tokens: int | None
) -> OptionKeywords:
    """Keywords of :class:`~q2export.runtime.options.GenerationOptions`.

    What the request does not say is left out.

    Args:
        request: a chat or completion request.
        engine: that is to answer.
        prompt_tokens: of the prompt.
        new_tokens: from :func:`new_token_limit`.

    Raises:
        ApiError: the prompt, or the prompt and the tokens asked for, are more than the engine holds.
    """
    options: OptionKeywords = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
    }
    if request.seed is not None:
        options["seed"] = request.seed % _SEEDS
    if request.top_k is not None:
        options["top_k"] = max(request.top_k, 0)  # -1 is how vLLM says all
    if request.min_tokens is not None:
        options["min_new_tokens"] = request.min_tokens
    if request.ignore_eos:
        options["ignore_eos"] = True
    if request.stop:
        options["stop"] = request.stop
    if request.logit_bias:
        options["logit_bias"] = _logit_bias(request.logit_bias, engine.backend.vocab_size)
    room = _room(engine, prompt_tokens, new_tokens)
    if new_tokens is not None:
        options["max_new_tokens"] = new_tokens
    elif engine.defaults.options.max_new_tokens is None:
        options["max_new_tokens"] = room  # as OpenAI: what fits
    return options


def new_token_limit(request: Request) -> int | None:
    """The most tokens a request asks for; None where it leaves that to the model.

    Raises:
        ApiError: two names for it contradict each other.
    """
    if isinstance(request, CompletionRequest):
        return _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    most = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if most not in (None, request.max_completion_tokens):
            raise invalid(
                f"max_completion_tokens is {request.max_completion_tokens} and max_tokens is {most}: "
                "they name the same limit; give one",
                param="max_completion_tokens",
            )
        most = request.max_completion_tokens
    return most


def _room(engine: Engine, prompt_tokens: int, new_tokens: int | None) -> int:
    capacity = engine.backend.max_capacity
    room = capacity - prompt_tokens
    if room < (1 if new_tokens is None else new_tokens):
        asked = "" if not new_tokens else f" and {new_tokens} new ones"
        raise invalid(
            f"this model holds {capacity} tokens; the request has {prompt_tokens} tokens of prompt{asked}. "
            "Shorten the prompt or ask for fewer",
            param="max_tokens" if new_tokens else None,
            code="context_length_exceeded",
        )
    return room


def _logit_bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    ids = {}
    for name, value in bias.items():
        if not name.isascii() or not name.isdigit() or int(name) >= vocab_size:
            raise invalid(
                f"logit_bias.{name[:40]}: the names are token ids from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        ids[int(name)] = value
    return ids
