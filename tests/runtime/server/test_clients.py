"""The openai SDK against this server, in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pydantic
import pytest

from q2export.runtime.engine import Engine
from q2export.runtime.server.app import create_app
from q2export.runtime.server.options import ServerOptions
from tests.runtime.fakes import hashed_logits
from tests.runtime.server.conftest import QUESTION, fake_engine, says
from tests.runtime.server.test_tools import CALL, WEATHER

Scenario = Callable[[openai.AsyncOpenAI], Awaitable[None]]


def with_client(engine: Engine, scenario: Scenario, key: str = "secret") -> None:
    async def main() -> None:
        app = create_app({"m": engine}, ServerOptions(api_key="secret"))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server/v1") as http,
            openai.AsyncOpenAI(
                api_key=key, base_url="http://server/v1", http_client=http, max_retries=0
            ) as client,
        ):
            await scenario(client)

    asyncio.run(main())


def test_an_answer_and_a_stream_with_usage() -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=QUESTION)
        assert answer.choices[0].message.content == "Hello, Straße."
        assert answer.usage is not None
        text, usage = "", None
        stream = await client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == answer.choices[0].message.content
        assert usage is not None
        assert usage.completion_tokens == answer.usage.completion_tokens
        completion = await client.completions.create(model="m", prompt="a", max_tokens=4)
        assert completion.choices[0].finish_reason == "length"
        assert [model.id async for model in client.models.list()] == ["m"]

    with_client(fake_engine(says("Hello, Straße.".encode())), scenario)


def test_tools_streamed_into_a_message() -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        tools: Any = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
        async with client.chat.completions.stream(model="m", messages=QUESTION, tools=tools) as stream:
            async for _ in stream:
                pass
            message = (await stream.get_final_completion()).choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.name == "get_weather"
        assert message.tool_calls[0].function.parsed_arguments == {"city": "Oslo"}

    with_client(fake_engine(says(CALL.encode()), max_capacity=1024), scenario)


def test_parse_gives_objects_of_a_class() -> None:
    class Point(pydantic.BaseModel):
        x: int = pydantic.Field(ge=0, le=999)
        kind: bool

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.parse(
            model="m", messages=QUESTION, response_format=Point, temperature=1, seed=2
        )
        point = answer.choices[0].message.parsed
        assert isinstance(point, Point)
        assert json.loads(answer.choices[0].message.content or "") == point.model_dump()

    with_client(fake_engine(hashed_logits), scenario)


def test_errors_are_those_the_sdk_knows() -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="m", messages=QUESTION, max_tokens=9999)
        assert (refused.value.param, refused.value.code) == ("max_tokens", "context_length_exceeded")
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            await client.chat.completions.create(model="x", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="no embeddings"):
            await client.embeddings.create(model="m", input="x")

    async def refused(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()

    with_client(fake_engine(says(b"x")), scenario)
    with_client(fake_engine(says(b"x")), refused, key="wrong")


def test_an_error_within_a_stream_is_raised() -> None:
    def model(prefix: Any, vocab_size: int) -> Any:
        logits = says(b"abcdef")(prefix, vocab_size)
        return logits * float("nan") if bytes(prefix[-2:]) == bytes([65, 66]) else logits

    async def scenario(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="not finite"):
            async for _ in stream:
                pass

    with_client(fake_engine(model), scenario)
