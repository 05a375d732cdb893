"""``bench``: tokens/s from runs whose times are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import q2export
from q2export.cli.main import main
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
    monkeypatch.setattr("q2export.api.load", lambda package, threads: fake)
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


def test_profile_of_operators(qwen2_tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a real engine: the parts add up to the whole."""
    command = ["bench", str(qwen2_tiny_package), *OPTIONS, "--threads", "1", "--profile-ops"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["prompt_tokens"], document["batch"], document["threads"]) == (16, 2, 1)
    assert (document["prefill"]["turns"], document["decode"]["turns"]) == (3, 3 * 8)
    for phase in (document["prefill"], document["decode"]):
        inside = sum(operator["seconds"] for operator in phase["operators"])
        assert inside + phase["between_nodes_seconds"] == pytest.approx(phase["seconds"])
        assert sum(operator["nodes"] for operator in phase["operators"]) == len(phase["nodes"])
        assert inside == pytest.approx(sum(node["seconds"] for node in phase["nodes"]))
    assert main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        lines[0].startswith("prefill: ") and " ms for 16 tokens, batch 2, in 1 call, median of 3" in lines[0]
    )
    assert lines[1] == "operator ms share nodes"
    assert any(" ms for a token, batch 2, in 1 call, median of 24" in line for line in lines)


def test_profiling_wants_onnxruntime(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = q2export.export(checkpoints / "qwen2-tiny", tmp_path / "portable").package
    assert main(["bench", str(package), "--profile-ops"]) == 1
    assert "operators are profiled in packages for onnxruntime only" in capsys.readouterr().err
