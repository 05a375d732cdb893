"""The server as a process: its address, its signals, its clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from q2export.errors import OptionError, Q2ExportError
from q2export.runtime.server.process import address, listen
from q2export.runtime.server.serve import served_names

QUESTION = [{"role": "user", "content": "What is a class?"}]


@contextmanager
def serving(package: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``q2export serve`` on a free port, and its address."""
    command = [sys.executable, "-m", "q2export", "serve", str(package), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"ready: (http://127\.0\.0\.1:\d+)$", line):
                yield process, found[1]
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.wait()


def test_sigterm_finishes_what_runs_and_exits_with_zero(qwen2_tiny_package: Path) -> None:
    """One process for all of it: it is what takes the time."""
    body = {"messages": QUESTION, "stream": True, "max_tokens": 900, "ignore_eos": True}
    with (
        serving(qwen2_tiny_package, "--name", "tiny", "--threads", "1") as (process, where),
        httpx.Client(base_url=where, timeout=60) as client,
    ):
        assert client.get("/health").json() == {"status": "ready", "models": ["tiny"]}
        text, finished = "", None
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    if "role" in choice["delta"]:
                        process.send_signal(signal.SIGTERM)  # a second one would end it at once
                    text += choice["delta"].get("content", "")
                    finished = choice["finish_reason"]
        assert finished == "length"
        assert len(text) > 900
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            client.get("/health/live")


def test_an_address_that_is_taken_is_one_line(qwen2_tiny_package: Path) -> None:
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(Q2ExportError, match=r"cannot listen on 127\.0\.0\.1 port"):
            listen("127.0.0.1", int(address(bound).rpartition(":")[2]))


def test_a_host_that_is_nobodys() -> None:
    with pytest.raises(Q2ExportError, match=r"cannot listen on no\.such"):
        listen("no.such.host.invalid", 0)


def test_addresses_of_both_kinds() -> None:
    with listen("127.0.0.1", 0) as bound:
        assert address(bound).startswith("http://127.0.0.1:")
    if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
        with listen("::1", 0) as bound:
            assert address(bound).startswith("http://[::1]:")


def test_names_of_packages(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "x" / "one"
    assert served_names([one, tmp_path / "two"], []) == {"one": one, "two": tmp_path / "two"}
    assert served_names([one, two], ["a"]) == {"a": one, "one": two}
    with pytest.raises(OptionError, match="tells packages apart"):
        served_names([one, two], [])
    with pytest.raises(OptionError, match="2 times for 1"):
        served_names([one], ["a", "b"])
