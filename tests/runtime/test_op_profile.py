"""Operator profiles: a trace whose sums are known, and a real engine's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import q2export
from q2export import runtime
from q2export.errors import GenerationError, PackageError
from q2export.runtime.op_trace import OperatorTime, Trace
from tests.helpers.checkpoints import tiny_config, write_checkpoint


def run(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def node(name: str, op_type: str, start: int, duration: int, index: int = 0) -> dict[str, Any]:
    arguments = {"op_name": op_type, "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}


def written(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(events))
    return path


def test_nodes_belong_to_their_call_and_medians_are_per_turn(tmp_path: Path) -> None:
    events = [
        node("stray", "Add", 2, 3),  # before the first call
        run(10, 100),
        node("a", "Gemm", 12, 40),
        node("b", "Gemm", 60, 20),
        {"cat": "Node", "name": "b_fence_after", "ts": 80, "dur": 0, "args": {"op_name": "Gemm"}},
        run(200, 50),
        node("a", "Gemm", 201, 10),
        node("", "Add", 230, 5, index=7),
        run(300, 60),
        node("a", "Gemm", 301, 30),
        run(400, 10),
        node("a", "Gemm", 401, 5),
    ]
    trace = Trace.read(written(tmp_path / "trace.json", events[::-1]))
    assert len(trace.calls) == 4
    # turns: calls 0 and 1 (150 us), calls 2 and 3 (70 us)
    phase = trace.phase([range(0, 2), range(2, 4)])
    assert (phase.turns, phase.calls) == (2, 2)
    assert phase.seconds == pytest.approx(110e-6)
    times = {(time.name, time.op_type): time.seconds for time in phase.nodes}
    assert times == pytest.approx({("a", "Gemm"): 42.5e-6, ("b", "Gemm"): 10e-6, ("Add 7", "Add"): 2.5e-6})
    assert [time.name for time in phase.nodes] == ["a", "b", "Add 7"]
    gemm, add = phase.operators
    assert (gemm.op_type, gemm.nodes, gemm.seconds) == ("Gemm", 2, pytest.approx(52.5e-6))
    assert add == OperatorTime("Add", 1, pytest.approx(2.5e-6))
    assert phase.between_nodes == pytest.approx(55e-6)


def test_time_in_a_subgraph_belongs_to_the_nodes_there(tmp_path: Path) -> None:
    events = [
        run(0, 100),
        node("outer", "If", 10, 80),
        node("inner", "If", 20, 40),
        node("x", "Gemm", 25, 30),
        node("y", "Mul", 60, 10),
        node("after", "Add", 90, 4),
    ]
    phase = Trace.read(written(tmp_path / "trace.json", events)).phase([range(1)])
    times = {time.name: time.seconds for time in phase.nodes}
    expected = {"outer": 30e-6, "inner": 10e-6, "x": 30e-6, "y": 10e-6, "after": 4e-6}
    assert times == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"cat": "Node", "name": "x_kernel_time"}]'])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(PackageError, match=r"trace\.json: not a trace"):
        Trace.read(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    checkpoint = write_checkpoint(folder / "checkpoint", tiny_config(head_dim=16))
    overrides = {"batch.max": 2, "capacity.max": 40, "prefill_chunk": 8}
    return q2export.build(checkpoint, folder / "package", parity=False, overrides=overrides).package


def test_every_node_of_the_graph_is_accounted_for(package: Path) -> None:
    prompts = [list(range(20)), list(range(20, 40))]
    found = runtime.profile(package, prompts, 5, repeat=3, warmup=1, threads=1)
    assert (found.prefill.turns, found.prefill.calls) == (3, 3)  # 20 tokens in chunks of 8
    assert (found.decode.turns, found.decode.calls) == (3 * 4, 1)
    graph = onnx.load(str(package / "model.onnx"), load_external_data=False).graph
    expected = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
    for phase in (found.prefill, found.decode):
        assert {op.op_type: op.nodes for op in phase.operators} == dict(expected)
        assert phase.seconds > 0 and all(op.seconds >= 0 for op in phase.operators)


def test_more_than_the_engine_was_built_for_is_refused(package: Path) -> None:
    with pytest.raises(GenerationError, match=r"capacity of 45 tokens is out of range"):
        runtime.profile(package, [[0] * 40], 5)


def test_only_packages_for_onnxruntime_have_operators(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config())
    exported = q2export.export(checkpoint, tmp_path / "package", target="portable").package
    with pytest.raises(PackageError, match=r"built for target 'portable'; operators are profiled in"):
        runtime.profile(exported, [[0] * 4], 2)
