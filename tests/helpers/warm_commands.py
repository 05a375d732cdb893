"""Commands and programs of the documentation in forks of a process that has imported PyTorch already.

Importing takes most of the time of a command over a tiny model. A fork differs from a fresh process in
nothing else: arguments, folder, environment and streams are the caller's, who gets its exit code.

    python -m tests.helpers.warm_commands SOCKET     # serves until killed
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_IMPORTED_BEFORE = (
    "torch._dynamo",
    "torch.export._trace",
    "torch._functorch.aot_autograd",
    "onnx",
    "onnx_ir",
    "numpy",
    "click",
    "tokenizers",
    "jinja2",
    "polygraphy",
)
_FAILED = 1

# -S -I: nothing but the standard library is needed, and it starts in a third of the time.
_SHIM = """#!{python} -IS
import sys
sys.path.insert(0, {repository!r})
from tests.helpers.warm_commands import ask
sys.exit(ask({socket!r}, ["q2export", *sys.argv[1:]]))
"""


def write_shim(folder: Path, address: Path) -> None:
    """Write ``q2export`` into ``folder``: the command, run by the server at ``address``."""
    shim = folder / "q2export"
    repository = str(Path(__file__).resolve().parents[2])
    text = _SHIM.format(python=sys.executable, repository=repository, socket=str(address))
    shim.write_text(text, encoding="utf-8")
    shim.chmod(0o755)


def ask(
    address: str,
    arguments: Sequence[str],
    *,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
    streams: tuple[int, int, int] = (0, 1, 2),
) -> int:
    """Have ``["q2export", ...]`` or ``["python", source]`` run, and return its exit code."""
    request = {
        "arguments": list(arguments),
        "folder": os.getcwd() if folder is None else folder,
        "environment": dict(os.environ if environment is None else environment),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"+"], streams)
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = connection.makefile().readline()
    return int(answer) if answer else _FAILED  # killed: it has said nothing


def serve(address: str) -> None:
    """Answer until killed."""
    for name in _IMPORTED_BEFORE:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """In the fork: become what was asked for, run it, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    for target, source in enumerate(streams):
        os.dup2(source, target)
        os.close(source)
    # New ones, for the new files: the old ones remember whether theirs could seek.
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode) for n, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = _run(request["arguments"])
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # the command line has detached it
            stream.flush()
    connection.sendall(f"{code}\n".encode())
    os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        if arguments[0] == "python":
            sys.argv, sys.path[0] = ["-c"], ""
            module = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), vars(module))
        else:
            from q2export.cli.main import entry_point

            sys.argv = arguments
            entry_point()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else _FAILED
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return _FAILED
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
