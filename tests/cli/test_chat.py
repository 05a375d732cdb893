"""``chat`` with messages piped to stdin, and at a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from q2export.cli.main import main
from q2export.runtime.backends.base import Float32Array
from q2export.runtime.chat import ChatTemplate
from q2export.runtime.engine import Engine
from tests.cli.engines import FakeEngine, FakeScheduler
from tests.runtime.fakes import FakeBackend, byte_tokenizer

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


def test_each_turn_computes_only_what_is_new(
    monkeypatch: pytest.MonkeyPatch, type_in: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens that the engine is given; the answer is that of the whole conversation."""
    tokenizer = byte_tokenizer()
    turn = "{% if m.role == 'user' %}?{{ m.content }}!{% else %}{{ m.content }}{% endif %}"
    template = ChatTemplate(f"{{% for m in messages %}}{turn}{{% endfor %}}", {})

    def made() -> tuple[FakeBackend, Engine]:
        # printable answers: the text of a turn becomes the same tokens again
        def model(prefix: Sequence[int], vocab_size: int) -> Float32Array:
            logits = np.zeros(vocab_size, np.float32)
            logits[33 + sum(prefix) % 60] = 1
            return logits

        backend = FakeBackend(vocab_size=tokenizer.size, max_capacity=512, prefill_chunk=512, model=model)
        return backend, Engine(backend, tokenizer=tokenizer, chat_template=template)

    backend, engine = made()
    monkeypatch.setattr("q2export.api.load", lambda package, threads: engine)
    type_in("How are you today?", "And tomorrow?")
    assert main(["chat", "package", "--max-new-tokens", "12"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    widths = [width for _, width, _ in backend.calls if width > 1]
    assert widths == [len("?How are you today?!"), len(f"{first[-1]}?And tomorrow?!")]
    messages = [
        {"role": "user", "content": "How are you today?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And tomorrow?"},
    ]
    _, again = made()
    assert again.generate(again.chat_prompt(messages), max_new_tokens=12).text == second
