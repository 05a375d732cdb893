"""``chat`` with messages piped to stdin, and at a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from q2export.cli.main import main
from tests.cli.engines import FakeEngine, FakeScheduler

Lines = Callable[..., None]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr("q2export.api.load", lambda package, threads: fake)
    monkeypatch.setattr("q2export.runtime.scheduler.Scheduler", FakeScheduler)
    return fake


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Lines:
    def install(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return install


def prompts(engine: FakeEngine) -> list[str]:
    return [call["prompt"] for call in engine.calls]


def test_the_conversation_grows(
    engine: FakeEngine, type_in: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in("Hi", "", "  ", "And then?")
    assert main(["chat", "package", "--system", "Be kind", "--max-new-tokens", "6", "--seed", "1"]) == 0
    assert prompts(engine) == [
        "system:Be kind|user:Hi",
        "system:Be kind|user:Hi|assistant:Hello|user:And then?",
    ]
    assert engine.calls[0]["max_new_tokens"] == 6
    assert engine.calls[0]["seed"] == 1
    captured = capsys.readouterr()
    assert captured.out == "Hello\nHello\n"
    assert captured.err.count("tokens/s") == 4


def test_commands(engine: FakeEngine, type_in: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    type_in("one", "/reset", "two", "/system  You are terse ", "three", "/system", "four", "/exit", "five")
    assert main(["chat", "package"]) == 0
    assert prompts(engine) == ["user:one", "user:two", "system:You are terse|user:three", "user:four"]
    assert capsys.readouterr().out == "Hello\n" * 4


def test_an_unknown_command_is_no_message(
    engine: FakeEngine, type_in: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in("/rest", "/help")
    assert main(["chat", "package"]) == 0
    err = capsys.readouterr().err
    assert "error: no command '/rest'; did you mean '/reset'?" in err
    assert "/system TEXT" in err
    assert engine.calls == []


def test_an_interrupt_ends_the_answer_only(
    engine: FakeEngine, type_in: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.interrupt_after = 1
    type_in("Hi", "Go on")
    assert main(["chat", "package"]) == 0
    assert prompts(engine)[1] == "user:Hi|assistant:Hel|user:Go on"
    captured = capsys.readouterr()
    assert captured.out == "Hel\nHel\n"
    assert captured.err == " (stopped)\n" * 2


def test_a_refused_message_ends_a_pipe_but_not_a_terminal(
    engine: FakeEngine, type_in: Lines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in("refuse", "Hi")
    assert main(["chat", "package"]) == 1
    assert "error: the chat template refused" in capsys.readouterr().err
    assert engine.calls == []

    type_in("refuse", "Hi")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["chat", "package"]) == 0
    assert "error: the chat template refused" in capsys.readouterr().err
    assert prompts(engine) == ["user:Hi"]


def test_an_interrupt_at_the_prompt_is_answered_with_the_way_out(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([KeyboardInterrupt, "Hi", EOFError])

    def read(prompt: str = "") -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["chat", "package"]) == 0
    assert "(ctrl-D or /exit leaves)" in capsys.readouterr().err
    assert prompts(engine) == ["user:Hi"]
