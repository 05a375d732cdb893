"""Unmodified clients against a running server: ``python benchmarks/serving/clients.py ADDRESS MODEL``.

It needs nothing of q2export and tries whatever clients the interpreter has; the others are named. The model
may be any whose chat template takes tools and whose context holds 8,192 tokens (aider's prompts are long).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MESSAGES = [{"role": "user", "content": "What is the weather in Oslo?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
FORCED = {"type": "function", "function": {"name": "get_weather"}}


def try_openai(base: str, model: str) -> None:
    """Sync and async, streamed and not, tools, ``parse``."""
    import openai
    import pydantic

    class City(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=8)
        large: bool

    client = openai.OpenAI(base_url=base, api_key="none")
    fields: Any = {"model": model, "messages": MESSAGES, "max_completion_tokens": 64}
    whole = client.chat.completions.create(**fields, temperature=0).choices[0].message.content
    stream = client.chat.completions.create(
        **fields, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens
    call = client.chat.completions.create(**fields, tools=[TOOL], tool_choice=FORCED)
    assert json.loads(call.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")
    parsed = client.chat.completions.parse(**{**fields, "max_completion_tokens": 400}, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)

    async def asynchronous() -> str:
        async with openai.AsyncOpenAI(base_url=base, api_key="none") as other:
            answer = await other.chat.completions.create(**fields, temperature=0)
            return str(answer.choices[0].message.content)

    assert asyncio.run(asynchronous()) == whole


def try_langchain(base: str, model: str) -> None:
    """``ChatOpenAI``: it sends tools without a tool_choice, and ``max_completion_tokens``."""
    import pydantic
    from langchain_openai import ChatOpenAI

    class City(pydantic.BaseModel):
        """A city."""

        name: str = pydantic.Field(max_length=8)

    chat = ChatOpenAI(model=model, base_url=base, api_key="none", temperature=0, max_tokens=64)
    whole = chat.invoke("What is a class?").content
    assert "".join(chunk.content for chunk in chat.stream("What is a class?")) == whole
    assert chat.bind_tools([TOOL]).invoke("Weather in Oslo?").response_metadata["finish_reason"]
    forced = chat.bind_tools([TOOL], tool_choice="get_weather").invoke("Weather?")
    assert forced.tool_calls[0]["args"]["city"] in ("Oslo", "Rome")
    structured = ChatOpenAI(model=model, base_url=base, api_key="none", temperature=0, max_tokens=400)
    assert isinstance(structured.with_structured_output(City).invoke("Oslo?"), City)


def try_litellm(base: str, model: str) -> None:
    """``completion``, streamed and not, with tools."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks GitHub otherwise
    import litellm

    fields = {"model": f"openai/{model}", "messages": MESSAGES, "api_base": base, "api_key": "none"}
    whole = litellm.completion(**fields, temperature=0, max_tokens=32).choices[0].message.content
    stream = litellm.completion(**fields, temperature=0, max_tokens=32, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    call = litellm.completion(**fields, tools=[TOOL], tool_choice="required", max_tokens=64)
    assert json.loads(call.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")


def try_llm(base: str, model: str) -> None:
    """The command ``llm``, streamed and not."""
    with tempfile.TemporaryDirectory() as folder:
        models = f"- model_id: served\n  model_name: {model}\n  api_base: {base}\n"
        (Path(folder) / "extra-openai-models.yaml").write_text(models)
        command = [str(Path(sys.executable).with_name("llm")), "-m", "served", "-o", "max_tokens", "32"]
        command += ["-o", "temperature", "0"]
        environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        said = [_output([*command, *more, "What is a class?"], environment) for more in ([], ["--no-stream"])]
    assert said[0].strip()
    assert said[0] == said[1]


def try_lm_eval(base: str, model: str) -> None:
    """``local-completions``: the likelihood of continuations, through echo and logprobs of token ids."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    harness = LocalCompletionsAPI(
        model=model,
        base_url=f"{base}/completions",
        tokenizer_backend="remote",
        max_length=1024,
        num_concurrent=1,
    )
    pairs = [("A class is", " called"), ("A class", " definition")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = harness.loglikelihood(requests)
    assert all(likelihood < 0 for likelihood, _ in found), found


def try_aider(base: str, model: str) -> None:
    """The command ``aider``, one message in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("aider")), "--model", f"openai/{model}"]
        command += ["--openai-api-base", base, "--openai-api-key", "none", "--no-git", "--yes-always"]
        command += ["--no-check-update", "--no-show-model-warnings", "--analytics-disable", "--no-auto-lint"]
        settings = [{"name": f"openai/{model}", "edit_format": "ask", "extra_params": {"max_tokens": 64}}]
        (Path(folder) / ".aider.model.settings.yml").write_text(json.dumps(settings))
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": folder}
        said = _output([*command, "--message", "What is a class?"], environment, folder)
    assert re.search(r"Tokens: \S+ sent, \S+ received|Output tokens: ~[1-9]", said), said
    assert "litellm." not in said, said


def _output(command: Sequence[str], environment: dict[str, str], folder: str | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900, check=False
    )
    if done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


CLIENTS: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "openai": ("openai", try_openai),
    "LangChain": ("langchain-openai", try_langchain),
    "LiteLLM": ("litellm", try_litellm),
    "llm": ("llm", try_llm),
    "lm-evaluation-harness": ("lm_eval", try_lm_eval),
    "aider": ("aider-chat", try_aider),
}


def main(address: str, model: str) -> int:
    """Try every client that is installed; 1 if one fails."""
    failed = 0
    for name, (distribution, attempt) in CLIENTS.items():
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: skipped, {distribution} is not installed here")
            continue
        try:
            attempt(f"{address.rstrip('/')}/v1", model)
            print(f"{name} {version}: works")
        except Exception as error:  # noqa: BLE001 - the next client is tried all the same
            failed = 1
            print(f"{name} {version}: FAILED: {error!r}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
