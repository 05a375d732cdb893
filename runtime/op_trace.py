"""The trace of ONNX Runtime's profiler: seconds per call, per operator and per node."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2export.errors import PackageError

_KERNEL = "_kernel_time"
_RUN = "model_run"
_CONTROL_FLOW = ("If", "Loop", "Scan")
_MICROSECOND = 1e-6


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph.

    Attributes:
        name: as in the ONNX file.
        op_type: its operator.
        seconds: per turn, median over the turns; time in a subgraph belongs to the nodes there.
    """

    name: str
    op_type: str
    seconds: float


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator: their number, and the sum of their seconds."""

    op_type: str
    nodes: int
    seconds: float


@dataclass(frozen=True)
class PhaseProfile:
    """One phase, prefill or decode.

    Attributes:
        turns: measured prompts, or measured tokens.
        calls: calls of ONNX Runtime per turn.
        seconds: per turn, from the first call to its end, without the time between calls; median.
        nodes: slowest first.
    """

    turns: int
    calls: int
    seconds: float
    nodes: tuple[NodeTime, ...]

    @property
    def operators(self) -> tuple[OperatorTime, ...]:
        """The nodes by operator, slowest first."""
        groups: dict[str, list[float]] = {}
        for node in self.nodes:
            groups.setdefault(node.op_type, []).append(node.seconds)
        operators = (OperatorTime(name, len(times), sum(times)) for name, times in groups.items())
        return tuple(sorted(operators, key=lambda operator: -operator.seconds))

    @property
    def between_nodes(self) -> float:
        """Seconds of a turn that are in no node: binding, scheduling, the profiler itself."""
        return max(0.0, self.seconds - sum(node.seconds for node in self.nodes))


@dataclass(frozen=True)
class Trace:
    """The profiler's events, by call of ONNX Runtime.

    Attributes:
        calls: the duration of each call, and the seconds of its nodes by (name, op_type).
    """

    calls: tuple[tuple[float, Mapping[tuple[str, str], float]], ...]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read the file that ONNX Runtime's profiler wrote.

        Raises:
            PackageError: it is not such a file.
        """
        try:
            events = json.loads(path.read_bytes())
            runs = sorted((e for e in events if e["name"] == _RUN), key=lambda e: float(e["ts"]))
            nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_KERNEL)]
            nodes.sort(key=lambda e: (float(e["ts"]), -float(e["dur"])))
            return cls(tuple(_calls(runs, nodes)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PackageError(f"{path}: not a trace of ONNX Runtime's profiler: {error}") from error

    def phase(self, turns: Sequence[range]) -> PhaseProfile:
        """Summarize calls.

        Args:
            turns: the calls that make up each turn; all of one length.
        """
        per_turn: list[dict[tuple[str, str], float]] = []
        for turn in turns:
            total: dict[tuple[str, str], float] = {}
            for call in turn:
                for key, seconds in self.calls[call][1].items():
                    total[key] = total.get(key, 0.0) + seconds
            per_turn.append(total)
        keys = {key for total in per_turn for key in total}
        nodes = [
            NodeTime(*key, statistics.median(total.get(key, 0.0) for total in per_turn))
            for key in sorted(keys)
        ]
        return PhaseProfile(
            turns=len(turns),
            calls=len(turns[0]),
            seconds=statistics.median(sum(self.calls[call][0] for call in turn) for turn in turns),
            nodes=tuple(sorted(nodes, key=lambda node: -node.seconds)),
        )


def _calls(
    runs: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[float, Mapping[tuple[str, str], float]]]:
    """The node events of each run, the time of nested ones taken from the node they are in."""
    position = 0
    for run in runs:
        end = run["ts"] + run["dur"]
        times: dict[tuple[str, str], float] = {}
        open_parents: list[tuple[float, tuple[str, str]]] = []
        while position < len(nodes) and nodes[position]["ts"] < end:
            event = nodes[position]
            position += 1
            if event["ts"] < run["ts"]:
                continue
            op_type = str(event["args"]["op_name"])
            name = str(event["name"]).removesuffix(_KERNEL) or f"{op_type} {event['args']['node_index']}"
            key, seconds = (name, op_type), event["dur"] * _MICROSECOND
            times[key] = times.get(key, 0.0) + seconds
            while open_parents and event["ts"] >= open_parents[-1][0]:
                open_parents.pop()
            if open_parents:
                times[open_parents[-1][1]] -= seconds
            if op_type in _CONTROL_FLOW:
                open_parents.append((event["ts"] + event["dur"], key))
        yield run["dur"] * _MICROSECOND, times
