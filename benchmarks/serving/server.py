"""A server process, what it says of itself, and the texts that its answers must be."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import q2export

_READY = re.compile(r"ready: (http://\S+)")
_NEW_TOKENS = 24
_HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "checkpoints" / "held_out.txt"


class ServerProcess:
    """``q2export serve`` on a free port.

    Args:
        package: folder that ``q2export build`` wrote.
        options: more of the command line.
    """

    def __init__(self, package: Path, *options: str) -> None:
        command = [sys.executable, "-m", "q2export", "serve", str(package), "--port", "0", "--name", "m"]
        self._process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := _READY.match(line):
                self.address = found[1]
                return
        raise RuntimeError("".join(said))

    def rss_bytes(self) -> int:
        """Resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def metric(self, name: str) -> float:
        """A gauge or counter of ``/metrics``."""
        for line in httpx.get(f"{self.address}/metrics").text.splitlines():
            if line.startswith(f"q2export_{name}{{"):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.terminate()
        return self._process.wait(60)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Question:
    """A request and the text that answers it: what ``Engine.generate`` gives, alone in a process."""

    body: dict[str, Any]
    text: str


def questions(package: Path, count: int, new_tokens: int = _NEW_TOKENS) -> list[Question]:
    """Conversations of different lengths; the even ones begin alike, the odd ones do not."""
    words = _HELD_OUT.read_text(encoding="utf-8").split()
    found = []
    with q2export.load(package) as engine:
        for number in range(count):
            start = 0 if number % 2 == 0 else 7 * number
            text = " ".join(words[start : start + 5 + 11 * number % 120])
            messages = [{"role": "user", "content": text}]
            prompt = engine.chat_prompt(messages, sanitize_control_tokens=True)
            answer = engine.generate(prompt, max_new_tokens=new_tokens, do_sample=False, ignore_eos=True)
            fields = {"max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
            found.append(Question({"model": "m", "messages": messages, **fields}, answer.text))
    return found


async def ask(client: httpx.AsyncClient, question: Question, stream: bool) -> str:
    """The answer to a question."""
    answer = await client.post("/v1/chat/completions", json={**question.body, "stream": stream})
    answer.raise_for_status()
    return streamed_text(answer.text) if stream else str(answer.json()["choices"][0]["message"]["content"])


def streamed_text(body: str) -> str:
    """The text of a stream, which must have come to its end.

    Raises:
        ValueError: it broke off, or an error is in it.
    """
    import json

    frames = body.split("\n\n")
    if frames[-2:] != ["data: [DONE]", ""]:
        raise ValueError(f"the stream broke off: {body[-200:]!r}")
    chunks: Sequence[Any] = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    if any("error" in chunk for chunk in chunks):
        raise ValueError(f"an error in the stream: {chunks[-1]}")
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
