"""The runner's side of a worker process: one contestant, commanded by JSON lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from q2export.errors import Q2ExportError

REPOSITORY = Path(__file__).parent.parent
_SHOWN_LINES = 15


class WorkerError(Q2ExportError):
    """A worker cannot start or failed; the message says what it said."""


class Worker:
    """A contestant in a process of its own. Only one works at a time: every call waits for the answer.

    Args:
        python: interpreter that has the contestant's library.
        module: module of ``benchmarks.workers``.
        settings: sent as the first line; see :mod:`benchmarks.workers.serve`.
        log: file for what the process writes to stderr.
        environment: of the process.

    Raises:
        WorkerError: the process ends or refuses before it is ready.
    """

    def __init__(
        self,
        python: str,
        module: str,
        settings: Mapping[str, object],
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._name = f"{module} ({python})"
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            try:
                self._process = subprocess.Popen(
                    [python, "-m", f"benchmarks.workers.{module}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    cwd=REPOSITORY,
                    env=dict(environment),
                )
            except OSError as error:
                raise WorkerError(f"cannot run {python}: {error.strerror}") from error
        self.versions: dict[str, str] = self.call("start", settings)["versions"]

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def call(self, action: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Do one action and return its answer.

        Raises:
            WorkerError: the worker reports an error or has ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"action": action, **(arguments or {})}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
            code = self._process.wait()
            raise WorkerError(f"{self._name} ended with {code} during {action!r}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._name}: {answer['error']}")
        return answer

    def load(self) -> float:
        """Drop what is loaded, load anew, and return the seconds."""
        return float(self.call("load")["seconds"])

    def generate(self, tokens: Sequence[int], count: int) -> list[float]:
        """Seconds until the first token after a prompt is chosen, then those of each later token."""
        return list(self.call("generate", {"tokens": list(tokens), "count": count})["seconds"])

    def generate_batch(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """The same for several prompts at once: seconds of each step, which gives one token to every one."""
        prompts = [list(prompt) for prompt in prompts]
        return list(self.call("generate_batch", {"prompts": prompts, "count": count})["seconds"])

    def serve_clients(self, clients: Sequence[Sequence[tuple[Sequence[int], int]]]) -> list[list[float]]:
        """Requests (prompt, tokens) of clients that ask one after the other; times of each request."""
        return list(self.call("serve_clients", {"clients": clients})["times"])

    def logits(self, tokens: Sequence[int], indices: Sequence[int]) -> list[float]:
        """Logits of ``indices`` of the vocabulary after the last of ``tokens``."""
        return list(self.call("logits", {"tokens": list(tokens), "indices": list(indices)})["logits"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
