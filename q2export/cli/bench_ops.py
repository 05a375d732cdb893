"""``q2export bench --profile-ops``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from q2export import runtime
from q2export.cli.output import aligned, print_json
from q2export.package.reader import read_package
from q2export.runtime.op_trace import PhaseProfile

if TYPE_CHECKING:
    from q2export.cli.bench import Workload

_SHOWN_NODES = 10


def show_profile(package: Path, work: Workload, *, threads: int | None, as_json: bool) -> None:
    """Print where the time goes, prefill and decode apart: all operators, and the slowest nodes (JSON: all).

    Raises:
        Q2ExportError: see :func:`q2export.runtime.profile`.
    """
    profile = runtime.profile(
        package,
        work.prompts(read_package(package).manifest.engine.vocab_size),
        work.new_tokens,
        repeat=work.repeat,
        warmup=work.warmup,
        threads=threads,
    )
    phases = {"prefill": profile.prefill, "decode": profile.decode}
    if as_json:
        documents = {name: _document(phase) for name, phase in phases.items()}
        print_json({**work.document(package, threads), **documents})
        return
    what = {"prefill": f"{work.prompt_tokens} tokens", "decode": "a token"}
    for name, phase in phases.items():
        calls = "1 call" if phase.calls == 1 else f"{phase.calls} calls"
        size = f"{what[name]}, batch {work.batch}, in {calls}"
        click.echo(f"{name}: {phase.seconds * 1e3:.2f} ms for {size}, median of {phase.turns}")
        click.echo(aligned(_rows(phase), indent=2, right=(1, 2, 3)))


def _rows(phase: PhaseProfile) -> Iterator[tuple[str, ...]]:
    def timed(name: str, seconds: float, nodes: int | None = None) -> tuple[str, ...]:
        share = f"{seconds / phase.seconds:.1%}"
        return name, f"{seconds * 1e3:.3f}", share, "" if nodes is None else str(nodes)

    yield "operator", "ms", "share", "nodes"
    for operator in phase.operators:
        yield timed(operator.op_type, operator.seconds, operator.nodes)
    yield timed("between nodes", phase.between_nodes)
    yield ("",)
    yield "slowest nodes", "ms", "share"
    for node in phase.nodes[:_SHOWN_NODES]:
        yield timed(node.name, node.seconds)[:3]
    yield ("",)


def _document(phase: PhaseProfile) -> dict[str, Any]:
    return {
        "turns": phase.turns,
        "calls_per_turn": phase.calls,
        "seconds": phase.seconds,
        "between_nodes_seconds": phase.between_nodes,
        "operators": [
            {"op_type": op.op_type, "nodes": op.nodes, "seconds": op.seconds} for op in phase.operators
        ],
        "nodes": [{"name": n.name, "op_type": n.op_type, "seconds": n.seconds} for n in phase.nodes],
    }
