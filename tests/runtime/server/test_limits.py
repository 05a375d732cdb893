from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from q2export.runtime.scheduler import SchedulerOptions
from q2export.runtime.server.app import create_app
from q2export.runtime.server.options import ServerOptions
from q2export.runtime.server.service import Service
from tests.runtime.server.conftest import QUESTION, Model, fake_engine, says, served

URL = "/v1/chat/completions"
KEY = {"Authorization": "Bearer secret"}


class Gate:
    """A model that says ``x`` and waits at each token until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, prefix: Any, vocab_size: int) -> Any:
        self.reached.set()
        assert self.open.wait(30), "nobody opened the gate"
        return says(b"x" * 400)(prefix, vocab_size)


def test_a_key_is_asked_for_where_the_engine_works_and_not_where_probes_look() -> None:
    with served(fake_engine(says(b"x")), ServerOptions(api_key="secret")) as client:
        for given in (None, b"Bearer wrong", b"secret", b"Bearer s\xe9cret"):
            headers = {} if given is None else {"Authorization": given}
            answer = client.post(URL, json={"messages": QUESTION}, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.post(URL, json={"messages": QUESTION}, headers=KEY).status_code == 200
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(declared: bool) -> None:
    def pieces() -> Iterator[bytes]:
        yield from [b" " * 60, b" " * 60]

    content: Any = b" " * 120 if declared else pieces()
    with served(fake_engine(), ServerOptions(max_body_bytes=100)) as client:
        answer = client.post("/tokenize", content=content)
        assert client.post("/tokenize", content=b'{"prompt": "a"}').status_code == 200
    assert (answer.status_code, "100 bytes" in answer.json()["error"]["message"]) == (413, True)


def test_several_models_by_name() -> None:
    engines = {"one": fake_engine(says(b"1")), "two": fake_engine(says(b"2"))}
    with served(engines) as client:
        for name, text in (("one", "1"), ("two", "2")):
            answer = client.post(URL, json={"model": name, "messages": QUESTION}).json()
            assert answer["choices"][0]["message"]["content"] == text
        missing = client.post(URL, json={"messages": QUESTION})
        other = client.post(URL, json={"messages": QUESTION, "model": "three"})
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        one = client.get("/v1/models/two").json()
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert listed == ["one", "two"]
    assert (one["id"], one["max_model_len"]) == ("two", 512)


def test_what_there_is_not() -> None:
    with served(fake_engine()) as client:
        embeddings = client.post("/v1/embeddings", json={"input": "x"})
        nowhere, wrong_method = client.get("/v1/nothing"), client.get(URL)
    assert (embeddings.status_code, "embeddings" in embeddings.json()["error"]["message"]) == (400, True)
    assert [nowhere.status_code, wrong_method.status_code] == [404, 405]
    assert "error" in nowhere.json()


# What follows drives the application itself: test clients neither go away nor read slowly.


class Call:
    """One request under way, with a client that does as it is told; without a body, that never comes."""

    def __init__(self, app: Starlette, path: str, body: object) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self._body = None if body is None else json.dumps(body).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "app": app,
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self.sent.append(dict(message))

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def running(
    scenario: Callable[[Starlette, Service], Awaitable[None]], model: Model, **scheduling: Any
) -> None:
    """Run a scenario in the lifespan of an application."""

    async def main() -> None:
        app = create_app({"m": fake_engine(model)}, None, SchedulerOptions(**scheduling))
        async with app.router.lifespan_context(app):
            await scenario(app, app.state.service)

    asyncio.run(main())


@contextmanager
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, whatever happens: the scheduler waits for its step."""
    found = Gate()
    try:
        yield found
    finally:
        found.open.set()


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_of_a_client_that_goes_away_ends(stream: bool) -> None:
    async def scenario(app: Starlette, service: Service) -> None:
        scheduler = service.models["m"].scheduler
        call = Call(app, URL, {"messages": QUESTION, "stream": stream, "n": 2})
        await until(closed.reached.is_set)
        call.gone.set()
        await asyncio.wait_for(call.task, 30)
        steps = scheduler.statistics().steps
        closed.open.set()
        await until(lambda: scheduler.statistics().running == 0)
        after = scheduler.statistics()
        assert after.steps - steps <= 2
        assert (after.cancelled, after.kv_tokens_used, service.active) == (2, 0, 0)
        other = Call(app, URL, {"messages": QUESTION, "max_tokens": 3})
        await asyncio.wait_for(other.task, 30)
        assert json.loads(other.body)["choices"][0]["message"]["content"] == "xxx"

    with gate() as closed:
        running(scenario, closed)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def main() -> None:
        app = create_app({"m": fake_engine()}, ServerOptions(body_seconds=0.01))
        async with app.router.lifespan_context(app):
            call = Call(app, URL, None)
            await asyncio.wait_for(call.task, 30)
            assert call.status == 408
            assert app.state.service.active == 0

    asyncio.run(main())


def test_a_full_queue_is_answered_429_and_what_runs_goes_on() -> None:
    async def scenario(app: Starlette, service: Service) -> None:
        calls = [Call(app, URL, {"messages": QUESTION, "max_tokens": 2}) for _ in range(2)]
        scheduler = service.models["m"].scheduler
        await until(lambda: scheduler.statistics().running + scheduler.statistics().waiting == 2)
        refused = Call(app, URL, {"messages": QUESTION, "max_tokens": 2})
        await asyncio.wait_for(refused.task, 30)
        assert refused.status == 429
        assert refused.headers[b"retry-after"] == b"1"
        assert json.loads(refused.body)["error"]["code"] == "queue_full"
        closed.open.set()
        for call in calls:
            await asyncio.wait_for(call.task, 30)
            assert call.status == 200

    with gate() as closed:
        running(scenario, closed, rows=1, queue_limit=1)


def test_a_slow_reader_holds_nobody_up_and_misses_nothing() -> None:
    async def scenario(app: Starlette, service: Service) -> None:
        slow = Call(app, URL, {"messages": QUESTION, "stream": True})
        slow.reading.clear()
        quick = Call(app, URL, {"messages": QUESTION, "stream": True})
        await asyncio.wait_for(quick.task, 30)
        await until(lambda: service.models["m"].scheduler.statistics().running == 0)
        assert not slow.sent
        slow.reading.set()
        await asyncio.wait_for(slow.task, 30)
        assert texts(slow) == texts(quick) == "x" * 400

    def texts(call: Call) -> str:
        chunks = [json.loads(line[6:]) for line in call.body.split(b"\n\n")[:-2]]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    running(scenario, says(b"x" * 400))


def test_while_it_drains_it_finishes_what_runs_and_refuses_the_rest() -> None:
    async def scenario(app: Starlette, service: Service) -> None:
        call = Call(app, URL, {"messages": QUESTION, "max_tokens": 2})
        await until(closed.reached.is_set)
        draining = asyncio.ensure_future(service.drain(30))
        await until(lambda: service.draining)
        refused = Call(app, URL, {"messages": QUESTION})
        await asyncio.wait_for(refused.task, 30)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (503, "draining")
        assert not draining.done()
        closed.open.set()
        await asyncio.wait_for(asyncio.gather(draining, call.task), 30)
        assert call.status == 200

    with gate() as closed:
        running(scenario, closed)


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_not_done_when_the_time_to_drain_is_over_is_told_so(stream: bool) -> None:
    async def scenario(app: Starlette, service: Service) -> None:
        call = Call(app, URL, {"messages": QUESTION, "stream": stream})
        await until(closed.reached.is_set)
        draining = asyncio.ensure_future(service.drain(0.01))
        await asyncio.sleep(0.1)
        closed.open.set()
        await asyncio.wait_for(asyncio.gather(draining, call.task), 30)
        text = call.body.split(b"\n\n")[-3].removeprefix(b"data: ") if stream else call.body
        assert json.loads(text)["error"]["code"] == "draining"
        assert call.status == (200 if stream else 503)

    with gate() as closed:
        running(scenario, closed)


def test_metrics_say_what_runs_and_how_long_clients_wait() -> None:
    with served(fake_engine(says(b"x" * 9))) as client:
        client.post(URL, json={"messages": QUESTION, "n": 2})
        client.post(URL, json={"messages": []})
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['q2export_requests_running{model="m"}'] == "0.0"
    assert values['q2export_requests_waiting{model="m"}'] == "0.0"
    assert values['q2export_kv_cache_usage_ratio{model="m"}'] == "0.0"
    assert values['q2export_generated_tokens_total{model="m"}'] == "20.0"
    assert values['q2export_time_to_first_token_seconds_count{model="m"}'] == "1.0"
    assert values['q2export_time_between_tokens_seconds_count{model="m"}'] == "18.0"
    assert values['q2export_request_seconds_count{model="m"}'] == "1.0"
    assert values[f'q2export_http_responses_total{{path="{URL}",status="400"}}'] == "1.0"
