"""The benchmark runner's logic: turns, ratios, bars, case files, workers. No speed is checked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main, run_case
from benchmarks.case import (
    ORT_OPS,
    CaseError,
    GainBar,
    GenerationCase,
    LimitBar,
    SpeedBar,
    case_names,
    case_path,
    parse_case,
    read_case,
)
from benchmarks.checkpoint import write_random_checkpoint, write_tokenizer
from benchmarks.measure import interleave, paired_speedup, summarize
from benchmarks.plot import plot_speedups, speed_rows
from benchmarks.report import bar_text, format_value, ort_ops_page, summary_lines
from benchmarks.result import judge, judge_gain, judge_limit, judge_speed, records
from benchmarks.settings import RunSettings
from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.folder import open_checkpoint
from q2export.exporter.checkpoint.parameters import check_parameters
from tests.helpers.checkpoints import tiny_config

ENVIRONMENT = dict(os.environ)


def test_every_contestant_gets_one_turn_per_round_and_the_order_rotates() -> None:
    order: list[str] = []

    def turn(name: str) -> list[float]:
        order.append(name)
        return [float(len(order))]

    samples = interleave({name: lambda name=name: turn(name) for name in "abc"}, rounds=3)

    # reference, by hand: the warm-up starts at c, then a, b, c start a round each
    assert order == list("cab" + "abc" + "bca" + "cab")
    assert samples == {"a": [[4], [9], [11]], "b": [[5], [7], [12]], "c": [[6], [8], [10]]}


def test_without_warm_up_every_round_counts() -> None:
    calls: list[int] = []
    samples = interleave({"a": lambda: [calls.append(1) or 0.5]}, rounds=2, warm_up=False)
    assert len(calls) == 2
    assert samples == {"a": [[0.5], [0.5]]}


def test_the_speedup_is_the_median_of_the_ratios_within_rounds() -> None:
    # a slow machine in the second round meets both; medians over all would say 3 / 2
    subject, peer = [[1.0], [10.0], [2.0]], [[2.0], [30.0], [3.0]]
    assert paired_speedup(subject, peer) == 2.0


def test_a_speedup_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_speedup([[1.0]], [[1.0], [1.0]])


def test_the_summary_is_over_all_runs() -> None:
    summary = summarize([[3.0, 1.0], [8.0]])
    assert summary.as_dict() == {"median": 3.0, "min": 1.0, "max": 8.0, "runs": 3}


@pytest.mark.parametrize(
    ("at_least", "met"), [(1.2, True), (1.25, True), (1.3, False)], ids=["above", "equal", "below"]
)
def test_a_speed_bar_is_decided_by_the_fastest_peer(at_least: float, met: bool) -> None:
    samples = {"decode": {"ours": [[4.0]], "slow": [[12.0]], "fast": [[5.0]]}}
    verdict = judge_speed(SpeedBar("decode", "ours", ("slow", "fast", "absent"), at_least), samples)
    assert verdict["speedup_over"] == {"slow": 3.0, "fast": 1.25}
    assert verdict["met"] is met


def test_a_bar_without_a_peer_is_not_reached_by_default() -> None:
    verdict = judge_speed(SpeedBar("decode", "ours", ("absent",), 1.0), {"decode": {"ours": [[1.0]]}})
    assert verdict["met"] is None
    assert "no peer" in bar_text(verdict)


def test_a_limit_bar_compares_the_median() -> None:
    samples = {"peak memory": {"ours": [[5e8], [9e8], [6e8]]}}
    assert judge_limit(LimitBar("peak memory", "ours", 6e8), samples)["met"] is True
    assert judge_limit(LimitBar("peak memory", "ours", 5.9e8), samples)["met"] is False
    assert judge_limit(LimitBar("peak memory", "theirs", 1.0), samples)["met"] is None


def test_a_batch_is_compared_with_one_sequence_of_the_same_contestant() -> None:
    # by hand: 3 sequences in 6 s against one in 4 s is 3 x 4 / 6 = 2 times the tokens/s
    samples = {"decode": {"ours": [[4.0], [8.0]]}, "decode-3": {"ours": [[6.0], [12.0]], "other": [[1.0]]}}
    verdict = judge_gain(GainBar("ours", 2.0), 3, samples)
    assert list(verdict["speedup_over"].values()) == [2.0]
    assert verdict["met"] is True
    assert judge_gain(GainBar("ours", 2.1), 3, samples)["met"] is False
    assert judge_gain(GainBar("other", 0.0), 3, samples)["met"] is None


@pytest.mark.parametrize("name", case_names())
def test_every_case_file_is_valid(name: str) -> None:
    kind, data, source = read_case(case_path(name))
    if kind == ORT_OPS:
        from benchmarks.ort_ops.run import OrtOpsSpec
        from q2export.strict.codec import from_plain

        assert from_plain(OrtOpsSpec, data, source).ops
        return
    case = parse_case(kind, data, source)
    model = case_path(name).parent / "models" / f"{case.model.config}.json"
    parse_config(json.loads(model.read_text()), str(model))


def test_an_unknown_case_names_the_nearest() -> None:
    with pytest.raises(CaseError, match=r"did you mean 'dense-0\.5b'"):
        case_path("dense-05b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 3}, "unknown key 'round'; did you mean 'rounds'"),
        ({"reference": "transformers fp23"}, "did you mean 'transformers fp32'"),
        ({"threads": "two"}, "threads must be an integer, found 'two'"),
        ({"kind": "generations"}, "kind is 'generations'; did you mean 'generation'"),
        (
            {"speed_bars": [{"metric": "decode", "subject": "q2export", "peers": [], "at_least": 1}]},
            "no peers",
        ),
        ({"read_of": "q2export gpu"}, "did you mean 'q2export cpu'"),
        ({"read_of": None}, "'plain read' is no contestant"),
        ({"gain_bars": [{"subject": "q2export cpu", "at_least": 5}]}, "gain_bars need a batch"),
        ({"limit_bars": [{"metric": "load", "subject": "q2export", "at_most": 1}]}, "is no contestant"),
    ],
    ids=["key", "contestant", "type", "kind", "bar", "read", "reader", "gain", "limit"],
)
def test_a_wrong_case_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    _, data, _ = read_case(case_path("dense-0.5b"))
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps({**data, **change}))  # JSON is YAML
    with pytest.raises(CaseError, match=message):
        parse_case(*read_case(path))


def test_the_main_case_compares_interleaved_with_a_reference() -> None:
    case = parse_case(*read_case(case_path("dense-0.5b")))
    assert isinstance(case, GenerationCase)
    assert case.threads == 2
    assert {bar.metric for bar in case.speed_bars} >= {"decode", "prefill-512", "load"}


def test_the_report_gives_medians_ratios_and_verdicts() -> None:
    _, data, source = read_case(case_path("dense-0.5b"))
    bars = [
        {"metric": "decode", "subject": "q2export cpu", "peers": ["transformers fp32"], "at_least": 1.5},
        {"metric": "load", "subject": "q2export cpu", "peers": ["llama.cpp bf16"], "at_least": 10},
    ]
    limits = [{"metric": "memory at decode", "subject": "q2export cpu", "at_most": 1e9}]
    case = parse_case("generation", {**data, "speed_bars": bars, "limit_bars": limits}, source)
    samples = {
        "decode": {"q2export cpu": [[0.02]], "transformers fp32": [[0.05]]},
        "memory at decode": {"q2export cpu": [[1.1e9]]},
    }
    result = {"case": "mine", "title": "Mine", "skipped": {"llama.cpp bf16": "no such file\nat line 1"}}
    lines = list(summary_lines({**result, "records": records(samples), "bars": judge(case, samples)}))
    assert any("q2export cpu" in line and "20.0 ms" in line for line in lines)
    assert any("2.50x of transformers fp32" in line and "1.5x: reached" in line for line in lines)
    assert any("1.10 GB (at most 1.00 GB): NOT REACHED" in line for line in lines)
    assert any("load of q2export cpu: no peer" in line and "not measured" in line for line in lines)
    assert lines[-1] == "  skipped llama.cpp bf16: no such file"


def test_a_random_checkpoint_is_complete_and_repeatable(tmp_path: Path) -> None:
    config = tiny_config(model_type="qwen2_moe")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_random_checkpoint(tmp_path / name, config)
    checkpoint = open_checkpoint(tmp_path / "a")
    check_parameters(checkpoint, parse_config(config, "test"))
    data = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert data == (tmp_path / "b" / "model.safetensors").read_bytes()
    words = np.frombuffer(data[-2048:], dtype=np.uint16).astype(np.uint32) << 16
    values = words.view(np.float32)
    assert np.isfinite(values).all()
    assert values.std() > 0


def test_the_tokenizer_covers_all_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "naïve 日本\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() == 257


def _result(ratio: float) -> dict[str, object]:
    bar = {"metric": "decode", "subject": "ours", "speedup_over": {"a": ratio, "b": 3.0}, "at_least": 1.0}
    return {
        "title": "A case",
        "machine": {"cpu": "CPU", "cores": 2},
        "threads": 2,
        "bars": [{**bar, "met": ratio >= 1}, {"metric": "peak memory", "value": 1.0, "at_most": 2.0}],
    }


def test_the_plot_shows_speed_bars_only(tmp_path: Path) -> None:
    rows = speed_rows(_result(0.8))
    assert [(row.peer, row.ratio, row.at_least, row.decides) for row in rows] == [
        ("a", 0.8, 1.0, True),
        ("b", 3.0, 1.0, False),
    ]
    reached = speed_rows(_result(1.2))[0].color
    assert len({rows[0].color, rows[1].color, reached}) == 3
    plot_speedups([_result(0.8), _result(1.2)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_values_have_units() -> None:
    assert format_value("decode", 0.0461) == "46.1 ms"
    assert format_value("wall time", 12.3) == "12.30 s"
    assert format_value("peak memory", 1.254e9) == "1.25 GB"
    assert format_value("bytes written", 3.2e6) == "3.2 MB"


TINY_OPS: dict[str, tuple[dict[str, int], int]] = {
    "attention": ({"heads": 6, "kv_heads": 2, "head_dim": 16, "layers": 2, "capacity": 32}, 4),
    "norm": ({"hidden": 24, "layers": 3}, 3),
    "linear": ({"hidden": 20, "intermediate": 36, "layers": 2}, 5),
    "moe": ({"hidden": 16, "intermediate": 12, "experts": 5, "top_k": 2, "layers": 2}, 2),
    "swiglu": ({"intermediate": 40, "layers": 2}, 3),
    "head": ({"hidden": 20, "vocab": 77}, 3),
    "quantized-products": ({"hidden": 128, "intermediate": 256, "kv": 32, "layers": 2}, 13),
    "quantized-head": ({"hidden": 128, "vocab": 77}, 5),
    "quantized-embedding": ({"hidden": 128, "vocab": 77}, 5),
    "quantized-moe": ({"hidden": 64, "intermediate": 32, "experts": 5, "top_k": 2, "layers": 2}, 4),
}
MEASURE_OPS = """
import json, sys
from pathlib import Path
from benchmarks.case import read_case
from benchmarks.ort_ops.run import OrtOpsSpec, measure_ort_ops
from q2export.strict.codec import from_plain
_, data, source = read_case(Path(sys.argv[1]))
print(json.dumps(measure_ort_ops(from_plain(OrtOpsSpec, data, source), source, Path(sys.argv[2]))))
"""


def _measure_tiny_ops(folder: Path, tolerance: float) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the runner sets ONNX Runtime's global thread pool."""
    case = {
        "kind": "ort-ops",
        "threads": 1,
        "rounds": 1,
        "turn_seconds": 0.0001,
        "tolerance": tolerance,
        "decisions": ["this one"],
        "points": {"chunk": [{"batch": 1, "sequence": 5, "past": 9}]},
        "ops": [{"op": op, "size": "tiny", "points": "chunk", "shape": TINY_OPS[op][0]} for op in TINY_OPS],
    }
    (folder / "case.yaml").write_text(json.dumps(case))
    return subprocess.run(
        [sys.executable, "-c", MEASURE_OPS, str(folder / "case.yaml"), str(folder / "work")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )


def test_variants_of_all_ops_equal_their_numpy_references(tmp_path: Path) -> None:
    finished = _measure_tiny_ops(tmp_path, tolerance=1e-5)
    assert finished.returncode == 0, finished.stderr
    records = json.loads(finished.stdout)
    assert Counter(record["op"] for record in records) == {op: count for op, (_, count) in TINY_OPS.items()}
    machine = {"cpu": "CPU", "vector_extensions": "avx2", "cores": 2, "load_1min": 0.0}
    result = {"machine": machine, "versions": {}, "threads": 1, "commit": "c", "date": "d", "command": "x"}
    page = ort_ops_page({**result, "records": records})
    assert all(f"## {op}, tiny" in page for op in TINY_OPS)
    assert page.count("**") == 2 * len(TINY_OPS)  # one fastest variant each


def test_a_variant_that_differs_from_the_reference_ends_the_measurement(tmp_path: Path) -> None:
    finished = _measure_tiny_ops(tmp_path, tolerance=1e-12)
    assert finished.returncode == 1
    assert "WrongResultError: attention tiny 1x5 past 9: " in finished.stderr


def test_an_unknown_option_or_case_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--work-dir", str(tmp_path), "--output-dir", str(tmp_path / "results")]
    assert main(["no-such-case", *arguments]) == 1
    assert "there is no case 'no-such-case'" in capsys.readouterr().err


def test_peers_that_are_not_installed_are_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, _ = read_case(case_path("export-72b"))
    command = {"name": "peer", "arguments": ["{peers_python}", "-m", "no_such_builder"]}
    own = {
        "name": "own",
        "arguments": [sys.executable, "-c", "import os, sys; os.mkdir(sys.argv[1])", "{output}"],
    }
    bar = {"metric": "wall time", "subject": "own", "peers": ["peer"], "at_least": 1}
    changed = {"commands": [own, command], "speed_bars": [bar], "limit_bars": [], "rounds": 1}
    folder = tmp_path / "cases"
    folder.mkdir()
    (folder / "mine.yaml").write_text(json.dumps({**data, **changed}))
    monkeypatch.setattr("benchmarks.case.CASES", folder)
    monkeypatch.setattr("benchmarks.commands.make_checkpoint", lambda spec, path: path)
    settings = RunSettings(tmp_path / "work", "q2export", *[sys.executable] * 3)

    result = run_case("mine", settings)

    assert "No module named no_such_builder" in result["skipped"]["peer"]
    assert result["bars"][0]["met"] is None
    assert {record["contestant"] for record in result["records"]} == {"own"}
