"""A server in this process: a real scheduler over a backend that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from q2export.runtime.backends.base import Float32Array
from q2export.runtime.chat import ChatTemplate
from q2export.runtime.engine import Engine
from q2export.runtime.generation_config import GenerationDefaults
from q2export.runtime.scheduler import SchedulerOptions
from q2export.runtime.server.app import create_app
from q2export.runtime.server.options import ServerOptions
from tests.runtime.fakes import END, FakeBackend, byte_ids, byte_tokenizer

END_ID = byte_tokenizer().size - 2
START_ID = END_ID + 1
# ChatML, with tools and their calls in the hermes form.
TEMPLATE = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "Well?"}]
Model = Callable[[Sequence[int], int], Float32Array]
Serve = Callable[..., AbstractContextManager[TestClient]]


def says(text: bytes, prompt_length: int = 1) -> Model:
    """A model whose answer is ``text``, to a conversation or to a prompt of ``prompt_length`` tokens."""
    return says_ids([*byte_ids(text), END_ID], prompt_length)


def says_ids(script: Sequence[int], prompt_length: int = 1) -> Model:
    """The same in token ids. Each has 9 more than the others, so that what a grammar forbids is not said."""

    def model(prefix: Sequence[int], vocab_size: int) -> Float32Array:
        turns = [place for place, token in enumerate(prefix) if token == START_ID]
        start = turns[-1] + 1 + len(b"assistant\n") if turns else prompt_length
        logits = np.zeros(vocab_size, np.float32)
        place = len(prefix) - start
        logits[script[place] if 0 <= place < len(script) else END_ID] = 9
        return logits

    return model


def fake_engine(model: Model | None = None, *, template: str = TEMPLATE, **backend: Any) -> Engine:
    tokenizer = byte_tokenizer()
    if model is not None:
        backend["model"] = model
    return Engine(
        FakeBackend(**{"vocab_size": tokenizer.size, "max_capacity": 512, "prefill_chunk": 64, **backend}),
        tokenizer=tokenizer,
        defaults=GenerationDefaults(eos_token_ids=(END_ID,)),
        chat_template=ChatTemplate(template, {"eos_token": END}),
        name="fake",
    )


@contextmanager
def served(
    engines: Engine | dict[str, Engine],
    options: ServerOptions | None = None,
    scheduling: SchedulerOptions | None = None,
) -> Iterator[TestClient]:
    """A client of engines by name (one alone is called ``m``)."""
    named = engines if isinstance(engines, dict) else {"m": engines}
    with TestClient(create_app(named, options, scheduling), raise_server_exceptions=False) as client:
        yield client


def events(text: str) -> list[Any]:
    """The data of a stream; ``[DONE]`` must be the last, and is left out."""
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
