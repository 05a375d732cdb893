"""The greedy texts of many clients at once against each alone, with nothing and with everything cached."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from benchmarks.serving.server import Question, ServerProcess, ask, questions


def run(package: Path, clients: int) -> dict[str, object]:
    """Count the answers that are not what the engine says alone.

    Returns:
        answers that differ, of how many, for each way of asking; and the share of prompt tokens not computed.
    """
    asked = questions(package, clients)
    differ: dict[str, object] = {}
    with ServerProcess(package) as server:
        for name in ("cold, at once", "warm, at once", "warm, one by one"):
            differ[name] = asyncio.run(_count(server.address, asked, at_once="at once" in name))
        computed, cached = server.metric("prompt_tokens_total"), server.metric("cached_prompt_tokens_total")
    return {"answers": len(asked), "differ": differ, "prompt tokens cached": cached / (computed + cached)}


async def _count(address: str, asked: list[Question], *, at_once: bool) -> int:
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        if at_once:
            answers = await asyncio.gather(*(ask(client, each, i % 3 == 0) for i, each in enumerate(asked)))
        else:
            answers = [await ask(client, each, False) for each in asked]
    return sum(answer != each.text for answer, each in zip(answers, asked, strict=True))
