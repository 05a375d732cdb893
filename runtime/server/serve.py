"""Packages in, a running server: what ``q2export serve`` does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from q2export.errors import OptionError
from q2export.package.reader import read_package
from q2export.runtime import load
from q2export.runtime.cpu import processors
from q2export.runtime.engine import Engine
from q2export.runtime.scheduler import SchedulerOptions
from q2export.runtime.server.app import create_app
from q2export.runtime.server.options import ServerOptions
from q2export.runtime.server.process import listen, run
from q2export.runtime.server.service import Service


def served_names(packages: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The packages by the names they are served under: those given, in order, else their folders'.

    Raises:
        OptionError: more names than packages, or two of the same name.
    """
    if len(names) > len(packages):
        raise OptionError("name", f"is given {len(names)} times for {len(packages)} packages")
    named: dict[str, Path] = {}
    for place, package in enumerate(packages):
        name = names[place] if place < len(names) else package.resolve().name
        if name in named:
            raise OptionError("name", f"tells packages apart: {named[name]} and {package} are both {name!r}")
        named[name] = package
    return named


def serve(
    packages: Mapping[str, Path],
    options: ServerOptions,
    scheduling: SchedulerOptions,
    *,
    host: str,
    port: int,
    threads: int | None,
    drain_seconds: float,
) -> None:
    """Load packages and serve them until a signal comes; what is chosen is printed to stderr.

    Args:
        packages: by the name that requests give.
        options: of the application.
        scheduling: of the scheduler of each engine.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        threads: of each engine on the CPU; None shares the processors among them.
        drain_seconds: in which requests that run must be done after SIGTERM.

    Raises:
        Q2ExportError: a package cannot be loaded, or the address is taken.
    """
    listening = listen(host, port)
    with ExitStack() as stack:
        stack.enter_context(listening)
        engines = {}
        for name, package in packages.items():
            engines[name] = stack.enter_context(_load(package, threads, len(packages)))
        app = create_app(engines, options, scheduling)

        def announce(address: str) -> None:
            service: Service = app.state.service
            for name, model in service.models.items():
                counts = model.scheduler.statistics()
                _say(
                    f"{name}: {counts.rows} rows, {counts.kv_tokens} tokens of KV cache, "
                    f"{model.capacity} tokens of context"
                )
            _say(f"ready: {address}")

        run(app, listening, drain_seconds=drain_seconds, announce=announce)


def _load(package: Path, threads: int | None, packages: int) -> Engine:
    """Load one of several packages that share the processors."""
    on_cpu = read_package(package).manifest.engine.tensorrt is None
    if not on_cpu and threads is None:
        return load(package)
    chosen = threads if threads is not None else max(1, processors() // packages)
    _say(f"loading {package} with {chosen or processors()} threads")
    return load(package, threads=chosen)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
