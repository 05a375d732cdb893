"""Thousands of requests of every kind: good ones, bad bodies, slow readers, clients that go away."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving.server import Question, ServerProcess, ask, questions, streamed_text

_AT_ONCE = 8
_NEW_TOKENS = 12
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_BAD: list[tuple[int, bytes]] = [
    (400, b""),
    (400, b"{"),
    (400, b"[]"),
    (400, b'{"messages": []}'),
    (400, b'{"messages": [{"role": "user", "content": 1}]}'),
    (400, b'{"messages": [{"role": "user", "content": "x"}], "temperature": "warm"}'),
    (400, b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999}'),
    (400, b'{"messages": [{"role": "user", "content": "\xff"}]}'),
    (404, b'{"messages": [{"role": "user", "content": "x"}], "model": "none"}'),
    (413, b" " * (9 << 20)),
]


def run(package: Path, requests: int) -> dict[str, object]:
    """Send ``requests`` requests, eight at once.

    Returns:
        requests of each kind, those lost (no answer, or none in full) and wrong (not what it should be), and
        resident memory at each tenth of the way, in MiB.
    """
    asked = questions(package, 40, _NEW_TOKENS)
    with ServerProcess(package) as server:
        soak = _Soak(server, asked, requests)
        asyncio.run(soak.run())
        running = server.metric("requests_running") + server.metric("requests_waiting")
        failed = server.metric("texts_failed_total")
        exit_code = server.stop()
    return {
        "requests": dict(sorted(soak.kinds.items())),
        "lost": soak.lost,
        "wrong": soak.wrong,
        "failed in the engine": failed,
        "left running": running,
        "MiB at each tenth": soak.memory,
        "exit code": exit_code,
    }


class _Soak:
    def __init__(self, server: ServerProcess, asked: list[Question], requests: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.lost: list[str] = []
        self.wrong: list[str] = []
        self.memory: list[float] = []
        self._server, self._asked, self._requests = server, asked, requests
        self._random = random.Random(1)
        self._sent = 0
        kinds: list[tuple[int, Callable[[httpx.AsyncClient], Awaitable[bool]]]] = [
            (30, self._whole),
            (30, self._stream),
            (10, self._bad),
            (8, self._several),
            (8, self._json),
            (6, self._gone),
            (5, self._slow),
            (3, self._score),
        ]
        self._weights, self._actions = zip(*kinds, strict=True)

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._server.address, timeout=600) as client:
            await asyncio.gather(*(self._client(client) for _ in range(_AT_ONCE)))

    async def _client(self, client: httpx.AsyncClient) -> None:
        while self._sent < self._requests:
            self._sent += 1
            if self._sent % (self._requests // 10) == 0:
                self.memory.append(round(self._server.rss_bytes() / 2**20, 1))
            (action,) = self._random.choices(self._actions, self._weights)
            name = action.__name__.removeprefix("_")
            self.kinds[name] += 1
            try:
                if not await action(client):
                    self.wrong.append(name)
            except (httpx.HTTPError, OSError, ValueError) as error:
                self.lost.append(f"{name}: {error!r}"[:200])

    async def _whole(self, client: httpx.AsyncClient) -> bool:
        question = self._random.choice(self._asked)
        return await ask(client, question, False) == question.text

    async def _stream(self, client: httpx.AsyncClient) -> bool:
        question = self._random.choice(self._asked)
        return await ask(client, question, True) == question.text

    async def _bad(self, client: httpx.AsyncClient) -> bool:
        status, body = self._random.choice(_BAD)
        answer = await client.post("/v1/chat/completions", content=body)
        return answer.status_code == status and "message" in answer.json()["error"]

    async def _several(self, client: httpx.AsyncClient) -> bool:
        question = self._random.choice(self._asked)
        answer = await client.post("/v1/chat/completions", json={**question.body, "n": 3})
        return [each["message"]["content"] for each in answer.json()["choices"]] == [question.text] * 3

    async def _json(self, client: httpx.AsyncClient) -> bool:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA, "strict": True}}
        body: dict[str, Any] = {**self._random.choice(self._asked).body, "response_format": wanted}
        answer = await client.post("/v1/chat/completions", json={**body, "temperature": 1, "max_tokens": 400})
        value = json.loads(answer.json()["choices"][0]["message"]["content"])
        return value.keys() == {"a", "b"} and value["a"] in (1, 2) and isinstance(value["b"], bool)

    async def _gone(self, client: httpx.AsyncClient) -> bool:
        body = {**self._random.choice(self._asked).body, "max_tokens": 300}
        stream = self._random.random() < 0.5
        asking = asyncio.ensure_future(client.post("/v1/chat/completions", json={**body, "stream": stream}))
        await asyncio.sleep(self._random.uniform(0, 0.2))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return True

    async def _slow(self, client: httpx.AsyncClient) -> bool:
        """A reader that takes a few bytes at a time from a small window."""
        question = self._random.choice(self._asked)
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port, limit=256)
        body = json.dumps({**question.body, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        received = b""
        while piece := await reader.read(200):
            received += piece
            await asyncio.sleep(0.01)
        writer.close()
        return streamed_text(_unchunked(received.partition(b"\r\n\r\n")[2]).decode()) == question.text

    async def _score(self, client: httpx.AsyncClient) -> bool:
        body = {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 1, "echo": True, "logprobs": 1}
        answer = await client.post("/v1/completions", json={**body, "temperature": 0})
        return [len(each["logprobs"]["tokens"]) for each in answer.json()["choices"]] == [4, 3]


def _unchunked(body: bytes) -> bytes:
    """The content of a body in chunks, up to the last of size 0."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        content += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return content
