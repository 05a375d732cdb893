"""q2export behind HTTP: ``q2export serve`` in a process of its own, a thread for each request's stream."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue

import q2export
from benchmarks.workers.q2export_engine import LoadedEngine
from benchmarks.workers.serve import Settings, serve
from benchmarks.workers.traffic import Progress

_READY = re.compile(r"ready: http://127\.0\.0\.1:(\d+)")


class HttpStepper:
    """Requests to ``/v1/completions``; with their ids, all tokens come, also those without text."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._progress: SimpleQueue[Progress | Exception] = SimpleQueue()

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Send it from a thread of its own."""
        fields = {"temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True}
        body = json.dumps({"prompt": list(prompt), "max_tokens": count, **fields})
        threading.Thread(target=self._read, args=(request, body), daemon=True).start()

    def step(self) -> Iterable[Progress]:
        """What has come."""
        found = self._progress.get()
        if isinstance(found, Exception):
            raise found
        return [found]

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, request: int, body: str) -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
            connection.request("POST", "/v1/completions", body)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(answer.read().decode())
            for line in answer:
                if line.startswith(b"data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    self._progress.put(Progress(request, choice["finish_reason"] is not None))
            connection.close()
        except Exception as error:  # noqa: BLE001 - raised where the requests are counted
            self._progress.put(error)


class LoadedServer:
    """A server under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        command = [sys.executable, "-m", "q2export", "serve", settings.model, "--port", "0"]
        # The same prompts come in every round: the server must compute them again, as all others do.
        command += ["--threads", str(settings.threads), "--prefix-bytes", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := _READY.match(line):
                self._port = int(found[1])
                return
        raise RuntimeError("".join(said))

    def __del__(self) -> None:
        self._process.kill()
        self._process.wait()

    def stepper(self, clients: int) -> HttpStepper:
        """Requests over HTTP."""
        return HttpStepper(self._port)

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Not over HTTP: the contestant without HTTP shows it."""
        raise NotImplementedError

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """Likewise."""
        raise NotImplementedError

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Those of the package, in this process."""
        with q2export.load(self._settings.model, threads=self._settings.threads) as engine:
            return LoadedEngine(engine).logits(prompt)


class Q2ExportServer:
    """Starts servers of packages."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The package's, uvicorn's and starlette's."""
        from importlib import metadata

        others = {name: metadata.version(name) for name in ("starlette", "uvicorn")}
        return {"q2export": q2export.__version__, **others}

    def load(self) -> LoadedServer:
        """``q2export serve``."""
        return LoadedServer(self._settings)


if __name__ == "__main__":
    serve(Q2ExportServer)
