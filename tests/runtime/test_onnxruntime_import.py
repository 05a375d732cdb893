"""Running an engine opens no socket and writes nothing, neither Python's own code nor ONNX Runtime's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from q2export.runtime.onnxruntime_import import TELEMETRY_SWITCH, import_onnxruntime

SCRIPT = """
import os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def watch(event, arguments):
    if event.startswith("socket."):
        print("socket:", event, arguments)
    elif event == "open":
        path, mode, flags = arguments
        if flags & WRITING and path != os.devnull:
            print("write:", path)
    elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen"):
        print("write:", event, arguments)

sys.addaudithook(watch)
import q2export

engine = q2export.load(sys.argv[1], threads=1)
assert engine.generate("A class", max_new_tokens=3, do_sample=False).finish_reason == "length"
engine.score([1, 2, 3])
for descriptor in os.listdir("/proc/self/fd"):  # what compiled code has opened, no audit event tells of
    if os.path.exists(f"/proc/self/fd/{descriptor}"):
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        if target.startswith("socket:") or target.startswith(os.environ["HOME"]):
            print("open:", target)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(package: Path, home: Path) -> list[str]:
    """What the script prints in an empty home; the last line is the value of the switch."""
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = {**inherited, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(package)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc/self/fd, as on Linux")
def test_an_engine_opens_no_socket_and_writes_nothing(qwen2_tiny_package: Path, tmp_path: Path) -> None:
    before = sorted(qwen2_tiny_package.rglob("*"))
    assert run(qwen2_tiny_package, tmp_path) == ["1"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(qwen2_tiny_package.rglob("*")) == before


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants the telemetry keeps it."""
    module = ModuleType("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setenv(TELEMETRY_SWITCH, "0")
    assert import_onnxruntime() is module
    assert os.environ[TELEMETRY_SWITCH] == "0"
    monkeypatch.delenv(TELEMETRY_SWITCH)
    import_onnxruntime()
    assert os.environ[TELEMETRY_SWITCH] == "1"
