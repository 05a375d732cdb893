"""``bench``: tokens/s from runs whose times are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from q2export.cli.main import main
from q2export.runtime.op_profile import OperatorProfile
from q2export.runtime.op_trace import NodeTime, PhaseProfile
from q2export.runtime.results import GenerationResult, Timings
from tests.cli.engines import FakeBackend

# The first run is the warm-up: were it counted, the medians would be others.
PREFILL = [9.0, 0.5, 0.25, 1.0]
DECODE = [9.0, 2.0, 4.0, 1.0]


@dataclass
class TimedEngine:
    backend: FakeBackend = field(default_factory=FakeBackend)
    prompts: list[list[list[int]]] = field(default_factory=list)

    def generate_batch(
        self, prompts: list[list[int]], *, max_new_tokens: int, do_sample: bool, ignore_eos: bool
    ) -> Sequence[GenerationResult]:
        assert (max_new_tokens, do_sample, ignore_eos) == (9, False, True)
        run = len(self.prompts)
        self.prompts.append(prompts)
        timings = Timings(len(prompts[0]), max_new_tokens, PREFILL[run], PREFILL[run], DECODE[run])
        return [GenerationResult((1,) * max_new_tokens, "", "length", None, timings)] * len(prompts)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TimedEngine:
    fake = TimedEngine()
    monkeypatch.setattr("q2export.api.load", lambda package, threads, prepack: fake)
    return fake


OPTIONS = ["--prompt-tokens", "16", "--new-tokens", "9", "--batch", "2", "--repeat", "3"]


def test_medians_over_the_measured_runs(engine: TimedEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "package", *OPTIONS, "--threads", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prefill_tokens_per_second"] == {"median": 64, "slowest": 32, "fastest": 128}
    assert document["decode_tokens_per_second"] == {"median": 8, "slowest": 4, "fastest": 16}
    assert document["runs"][0] == {"prefill_seconds": 0.5, "decode_seconds": 2.0}
    assert (document["batch"], document["threads"], len(document["runs"])) == (2, 2, 3)
    assert document["load_seconds"] >= 0


def test_prompts_are_the_same_ids_of_the_vocabulary_in_every_run(engine: TimedEngine) -> None:
    assert main(["bench", "package", *OPTIONS]) == 0
    assert len(engine.prompts) == 4
    assert all(prompts == engine.prompts[0] for prompts in engine.prompts)
    assert [len(prompt) for prompt in engine.prompts[0]] == [16, 16]
    assert engine.prompts[0][0] != engine.prompts[0][1]
    assert all(0 <= token < 100 for prompt in engine.prompts[0] for token in prompt)


def test_table(engine: TimedEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "package", *OPTIONS]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "tokens/s slowest fastest"
    assert lines[1] == "prefill 64.0 32.0 128.0 16 tokens, batch 2"
    assert lines[2] == "decode 8.0 4.0 16.0 8 steps, batch 2"


NODES = (NodeTime("layer.0/Gemm", "Gemm", 0.006), NodeTime("layer.1/Gemm", "Gemm", 0.002))
PROFILE = OperatorProfile(
    PhaseProfile(3, 2, 0.4, NODES[:1]), PhaseProfile(24, 1, 0.01, (*NODES, NodeTime("add", "Add", 0.001)))
)


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Sequence[int]]]:
    """The prompts that were profiled; the package has a vocabulary of 100."""
    seen: list[Sequence[Sequence[int]]] = []

    def profile(
        package: object, prompts: Sequence[Sequence[int]], new_tokens: int, **options: object
    ) -> OperatorProfile:
        assert new_tokens == 9
        assert options == {"repeat": 3, "warmup": 1, "threads": 2, "prepack": None}
        seen.append(prompts)
        return PROFILE

    manifest = SimpleNamespace(engine=SimpleNamespace(vocab_size=100))
    monkeypatch.setattr("q2export.runtime.profile", profile)
    monkeypatch.setattr(
        "q2export.cli.bench_ops.read_package", lambda package: SimpleNamespace(manifest=manifest)
    )
    return seen


def test_profile_of_operators_as_json(
    profiled: list[Sequence[Sequence[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "package", *OPTIONS, "--threads", "2", "--profile-ops", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [len(prompt) for prompt in profiled[0]] == [16, 16]
    assert all(0 <= token < 100 for prompt in profiled[0] for token in prompt)
    decode = document["decode"]
    assert decode["operators"] == [
        {"op_type": "Gemm", "nodes": 2, "seconds": 0.008},
        {"op_type": "Add", "nodes": 1, "seconds": 0.001},
    ]
    assert decode["nodes"][0] == {"name": "layer.0/Gemm", "op_type": "Gemm", "seconds": 0.006}
    assert decode["between_nodes_seconds"] == pytest.approx(0.001)
    assert (document["prefill"]["calls_per_turn"], decode["turns"], document["batch"]) == (2, 24, 2)


def test_profile_of_operators_as_tables(
    profiled: list[Sequence[Sequence[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "package", *OPTIONS, "--threads", "2", "--profile-ops"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "prefill: 400.00 ms for 16 tokens, batch 2, in 2 calls, median of 3"
    assert "decode: 10.00 ms for a token, batch 2, in 1 call, median of 24" in lines
    assert "Gemm 8.000 80.0% 2" in lines
    assert "between nodes 1.000 10.0%" in lines
    assert "layer.1/Gemm 2.000 20.0%" in lines
