"""The processes of the benchmark runner: commands, what is built, workers. No speed is checked here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.build import build
from benchmarks.case import Contestant
from benchmarks.process import CommandError, folder_bytes, reset_peak, run_measured, tree_rss_bytes
from benchmarks.settings import RunSettings
from benchmarks.worker import Worker, WorkerError
from benchmarks.workers.plain_read import PlainRead, weight_ranges
from benchmarks.workers.q2export_engine import Q2Export
from benchmarks.workers.serve import Settings

ENVIRONMENT = dict(os.environ)


def test_memory_of_a_command_counts_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, seen = 150_000_000, tmp_path / "seen"

    def noticing(pid: int) -> int:
        found = tree_rss_bytes(pid)
        if found > size:
            seen.touch()
        return found

    hold = f"b = bytearray({size}); b[::4096] = b'x' * len(b[::4096])"
    wait = f"import os, time\nwhile not os.path.exists({str(seen)!r}): time.sleep(0.01)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold + chr(10) + wait!r}])"
    monkeypatch.setattr("benchmarks.process.tree_rss_bytes", noticing)
    measured = run_measured([sys.executable, "-c", script], tmp_path / "log", ENVIRONMENT)
    assert size < measured.peak_rss_bytes < 2 * size
    assert measured.seconds > 0


def test_a_failing_command_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"exited with 1:\n(?s:.*)no such thing"):
        run_measured(
            [sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log", ENVIRONMENT
        )
    with pytest.raises(CommandError, match=r"cannot run .*No such file"):
        run_measured([str(tmp_path / "absent")], tmp_path / "log", ENVIRONMENT)


def test_bytes_written_leave_out_links(tmp_path: Path) -> None:
    outside, output = tmp_path / "weights", tmp_path / "output"
    output.mkdir()
    outside.write_bytes(b"w" * 100_000)
    (output / "hard").hardlink_to(outside)
    (output / "soft").symlink_to(outside)
    (output / "own").write_bytes(b"o" * 8192)
    assert folder_bytes(output) == 8192


def test_the_peak_of_a_process_starts_anew_when_reset() -> None:
    size = 100_000_000
    hold = f"b = bytearray({size}); b[::4096] = b'x' * len(b[::4096]); del b; print(flush=True); input()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert tree_rss_bytes(child.pid) > size
        reset_peak(child.pid)
        assert tree_rss_bytes(child.pid) < size
        child.communicate(b"\n")


def test_what_a_peer_runs_is_built_once_and_what_q2export_runs_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builders are a script that counts its runs; a llama.cpp model is a file, the others are folders."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    script = tmp_path / "builder"
    output = f'"{tmp_path / "bench"}/checkpoint-$last"'
    script.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\nfor last; do :; done\n: > {output}\n")
    script.chmod(0o755)
    settings = RunSettings(tmp_path / "bench", *[str(script)] * 4)

    def runs(worker: str, *arguments: str) -> int:
        before = len((tmp_path / "runs").read_text().splitlines()) if (tmp_path / "runs").exists() else 0
        build(
            Contestant("mine", worker, "float32", None, (*arguments, "mine"), 0.0),
            tmp_path / "checkpoint",
            1,
            settings,
        )
        return len((tmp_path / "runs").read_text().splitlines()) - before

    assert [runs("llama_cpp_model", "bf16") for _ in range(2)] == [1, 0]
    assert runs("llama_cpp_model", "q4_0") == 1
    assert [runs("q2export_engine") for _ in range(2)] == [1, 1]


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no_such_worker"):
        Worker(sys.executable, "no_such_worker", {}, tmp_path / "log", ENVIRONMENT)


def test_a_worker_serves_load_prefill_decode_and_logits(tmp_path: Path) -> None:
    """The protocol, over a library that counts upwards."""
    package = tmp_path / "benchmarks" / "workers"
    package.mkdir(parents=True)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.workers.serve import serve
class Model:
    def tokens(self, prompt, count):
        print("noise on stdout")
        return (prompt[-1] + i for i in range(count))
    def batch_seconds(self, prompts, count):
        return [float(len(prompts))] * (count if len(prompts) < 3 else 1)
    def logits(self, prompt):
        if not prompt:
            raise ValueError("empty prompt")
        return [0.5 * i for i in range(10)]
class Library:
    def __init__(self, settings): self.threads = settings.threads
    def versions(self): return {"threads": str(self.threads)}
    def load(self): return Model()
serve(Library)
"""
    (tmp_path / "python").write_text(
        f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'script.py'} {Path(__file__).parents[1]}\n"
    )
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "python").chmod(0o755)
    settings = {"model": "m", "threads": 3, "dtype": "float32", "experts": None}
    with Worker(str(tmp_path / "python"), "any", settings, tmp_path / "log", ENVIRONMENT) as worker:
        assert worker.versions == {"threads": "3"}
        assert worker.load() >= 0
        assert len(worker.generate([1, 2], 5)) == 5
        assert worker.generate_batch([[1], [2]], 4) == [2.0] * 4
        assert worker.logits([1], [0, 3]) == [0.0, 1.5]
        with pytest.raises(WorkerError, match="ValueError: empty prompt"):
            worker.logits([], [0])
        with pytest.raises(WorkerError, match="asked for 4 tokens, got 1"):
            worker.generate_batch([[1]] * 3, 4)
        with pytest.raises(WorkerError, match="unknown action 'dance'"):
            worker.call("dance", {"tokens": []})


def test_a_plain_read_reads_every_word_of_the_weights_once(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 62, 1001, np.uint64)
    (tmp_path / "weights").write_bytes(words.tobytes())
    tensors = []
    for name, start, count in (("a", 0, 700), ("b", 700, 301), ("a again", 0, 700)):
        tensor = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", start * 8), ("length", count * 8)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    graph = onnx.helper.make_graph([], "graph", [], [], tensors)
    (tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())

    assert weight_ranges(tmp_path / "model.onnx") == {tmp_path / "weights": [(0, 5600), (5600, 8008)]}
    library = PlainRead(Settings(str(tmp_path), threads=3, dtype="float32", experts=None))
    loaded = library.load()
    assert list(loaded.tokens([], 2)) == [0, 0]
    total = loaded.read()
    assert total == int(words.sum())  # both modulo 2**64


def test_q2export_serves_one_sequence_and_a_batch(qwen2_tiny_package: Path) -> None:
    loaded = Q2Export(Settings(str(qwen2_tiny_package), threads=1, dtype="float32", experts=None)).load()
    assert len(list(loaded.tokens([1, 2, 3], 4))) == 4
    seconds = loaded.batch_seconds([[1, 2, 3], [4, 5, 6]], 4)
    assert len(seconds) == 4
    assert min(seconds) > 0
    assert len(loaded.logits([1, 2, 3])) > 6
