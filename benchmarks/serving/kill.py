"""Clients that are killed at random moments, streaming and not, while others must not notice."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import httpx

from benchmarks.serving.server import Question, ServerProcess, ask, questions

_OTHERS = 4
_WAVES = 8


def run(package: Path, clients: int) -> dict[str, object]:
    """Kill ``clients`` clients in each of several waves.

    Returns:
        wrong answers of the clients that stayed; after each wave with nobody else there, the engine's steps
        until nothing ran; resident memory after the first wave and after the last, in MiB.
    """
    stay, long = questions(package, _OTHERS), questions(package, clients, new_tokens=400)
    steps, memory, wrong = [], [], 0
    with ServerProcess(package) as server:
        for wave in range(_WAVES):
            random.seed(wave)
            others = [] if wave % 2 else stay
            wrong += asyncio.run(_wave(server.address, long, others))
            before = server.metric("engine_steps_total")
            while server.metric("requests_running") or server.metric("requests_waiting"):
                time.sleep(0.001)
            if not others:
                steps.append(server.metric("engine_steps_total") - before)
            memory.append(server.rss_bytes() / 2**20)
        cancelled, failed = server.metric("texts_cancelled_total"), server.metric("texts_failed_total")
        exit_code = server.stop()
    return {
        "killed": _WAVES * clients,
        "cancelled by the server": cancelled,
        "failed": failed,
        "wrong answers of others": wrong,
        "of": _OTHERS * (_WAVES + 1) // 2,
        "steps until idle": steps,
        "MiB after each wave": [round(each, 1) for each in memory],
        "exit code": exit_code,
    }


async def _wave(address: str, killed: list[Question], others: list[Question]) -> int:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def until_killed(number: int, question: Question) -> None:
            asking = asyncio.ensure_future(ask(client, question, stream=number % 2 == 0))
            await asyncio.sleep(random.uniform(0, 1.5))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        kills = [until_killed(number, question) for number, question in enumerate(killed)]
        answers, *_ = await asyncio.gather(asyncio.gather(*(ask(client, q, True) for q in others)), *kills)
    return sum(answer != question.text for answer, question in zip(answers, others, strict=True))
