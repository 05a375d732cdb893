"""An engine that says what it is told to, for the tests of commands."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from q2export.errors import GenerationError
from q2export.runtime.results import GenerationResult, Timings, TokenEvent

if TYPE_CHECKING:
    from typing import Unpack

    from q2export.runtime.options import OptionKeywords

TIMINGS = Timings(
    prompt_tokens=8, generated_tokens=5, prefill_seconds=0.004, time_to_first_token=0.005, decode_seconds=0.02
)


@dataclass
class FakeBackend:
    vocab_size: int = 100


@dataclass
class FakeEngine:
    """Streams ``pieces``; ``interrupt_after`` of them ctrl-C is pressed."""

    pieces: Sequence[str] = ("Hel", "", "lo")
    interrupt_after: int | None = None
    backend: FakeBackend = field(default_factory=FakeBackend)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As many ids as characters, so that a test recognises the conversation in the calls."""
        text = "|".join(f"{message['role']}:{message['content']}" for message in messages)
        if "refuse" in text:
            raise GenerationError("the chat template refused the messages")
        return [ord(character) for character in text]

    def stream(
        self, prompt: str | list[int], **options: Unpack[OptionKeywords]
    ) -> Generator[TokenEvent, None, None]:
        """Record the call, with the options that are given."""
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        given = {name: value for name, value in options.items() if value not in (None, ())}
        self.calls.append({"prompt": text, **given})
        return self._events()

    def _events(self) -> Generator[TokenEvent, None, None]:
        for number, text in enumerate(self.pieces):
            if number == self.interrupt_after:
                raise KeyboardInterrupt
            last = number == len(self.pieces) - 1
            whole = GenerationResult((7, 8, 9), "".join(self.pieces), "stop", None, TIMINGS)
            yield TokenEvent(number, text, whole if last else None)


@dataclass
class FakeScheduler:
    """Streams what the engine does."""

    engine: FakeEngine
    options: object

    def submit(
        self, prompt: str | list[int], **options: Unpack[OptionKeywords]
    ) -> AbstractContextManager[Iterator[TokenEvent]]:
        return closing(self.engine.stream(prompt, **options))

    def __enter__(self) -> FakeScheduler:
        return self

    def __exit__(self, *_: object) -> None:
        pass
