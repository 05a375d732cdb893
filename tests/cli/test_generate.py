"""``generate``: prompts, options, streams and JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from q2export.cli.main import main
from tests.cli.engines import FakeEngine

TIMINGS = "prompt 8 tokens in 4.0 ms (2000 tokens/s), generated 5 tokens in 20.0 ms (200.0 tokens/s)\n"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()

    def load(package: Path, *, threads: int | None) -> FakeEngine:
        assert (package, threads) in ((Path("package"), None), (Path("package"), 3))
        return fake

    monkeypatch.setattr("q2export.api.load", load)
    return fake


def test_text_to_stdout_and_timings_to_stderr(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    for stream in ("--stream", "--no-stream"):
        assert main(["generate", "package", "--prompt", "Say hello", stream]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("Hello\n", TIMINGS)
    assert engine.calls == [{"prompt": "Say hello"}] * 2


def test_json(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "package", "--prompt", "p", "--threads", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "prompt": "p",
        "token_ids": [7, 8, 9],
        "text": "Hello",
        "finish_reason": "stop",
        "stop_string": None,
        "logprobs": None,
        "timings": {
            "prompt_tokens": 8,
            "generated_tokens": 5,
            "prefill_seconds": 0.004,
            "time_to_first_token": 0.005,
            "decode_seconds": 0.02,
            "cached_prompt_tokens": 0,
            "queue_seconds": 0.0,
        },
    }
    assert captured.err == TIMINGS


def test_every_option_reaches_the_engine(engine: FakeEngine) -> None:
    sampling = "--max-new-tokens 9 --temperature 0.5 --top-k 40 --top-p 0.9 --min-p 0.1 --seed 5"
    others = "--repetition-penalty 1.2 --stop END --stop . --ignore-eos --logit-bias 5=1.5 --logit-bias 7=-3"
    others += " --presence-penalty 0.5 --frequency-penalty -1 --logprobs 2"
    assert main(["generate", "package", "--prompt", "p", *sampling.split(), *others.split()]) == 0
    assert main(["generate", "package", "--prompt", "p", "--greedy"]) == 0
    assert main(["generate", "package", "--prompt", "p", "--sample", "--min-new-tokens", "2"]) == 0
    assert engine.calls == [
        {
            "prompt": "p",
            "max_new_tokens": 9,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": -1.0,
            "logit_bias": {5: 1.5, 7: -3.0},
            "logprobs": 2,
            "seed": 5,
            "stop": ("END", "."),
            "ignore_eos": True,
        },
        {"prompt": "p", "do_sample": False},
        {"prompt": "p", "do_sample": True, "min_new_tokens": 2},
    ]


def test_chat_wraps_the_prompt_in_the_template(engine: FakeEngine) -> None:
    assert main(["generate", "package", "--prompt", "Hi", "--chat"]) == 0
    assert engine.calls[0]["prompt"] == "user:Hi"


def test_the_prompt_may_come_from_a_file_or_stdin(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Größe\n\n", encoding="utf-8")
    assert main(["generate", "package", "--prompt-file", str(path)]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))
    assert main(["generate", "package"]) == 0
    assert [call["prompt"] for call in engine.calls] == ["Größe\n", "piped"]


def test_a_terminal_is_not_waited_for(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["generate", "package"]) == 2
    assert "missing prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file contradict"),
        (["--prompt", "a", "--greedy", "--top-k", "3"], "--greedy and --top-k contradict"),
        (["--prompt", "a", "--greedy", "--temperature", "0"], "--greedy and --temperature contradict"),
        (["--prompt", "a", "--json", "--stream"], "--json and --stream contradict"),
        (["--prompt", "a", "--top-k", "many"], "'many' is not a valid integer"),
    ],
)
def test_contradictions(
    options: list[str], message: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "package", *options]) == 2
    assert message in capsys.readouterr().err
    assert engine.calls == []


def test_unreadable_prompts(engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin1").write_bytes(b"Gr\xf6\xdfe")
    assert main(["generate", "package", "--prompt-file", str(tmp_path / "latin1")]) == 1
    assert "latin1: expected UTF-8 text, found another byte at 2" in capsys.readouterr().err
    assert main(["generate", "package", "--prompt-file", str(tmp_path / "none")]) == 1
    assert "none: cannot be read: No such file or directory" in capsys.readouterr().err
    assert engine.calls == []


def test_an_interrupt_ends_the_program(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.interrupt_after = 1
    assert main(["generate", "package", "--prompt", "p"]) == 130
    assert capsys.readouterr().out == "Hel"


def test_a_bias_that_is_none_is_a_usage_error(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "package", "--prompt", "p", "--logit-bias", "5:1"]) == 2
    error = capsys.readouterr().err
    assert "--logit-bias" in error
    assert "5:1" in error
    assert engine.calls == []
