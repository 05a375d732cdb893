"""``q2export chat``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from q2export.cli import options
from q2export.cli.sampling import check_greedy, generation_options, timings_text
from q2export.errors import GenerationError
from q2export.strict.suggest import nearest

if TYPE_CHECKING:
    from typing import Unpack

    from q2export.runtime.engine import Engine
    from q2export.runtime.options import OptionKeywords
    from q2export.runtime.scheduler import Scheduler

_COMMANDS = {
    "/exit": "leave (so does ctrl-D)",
    "/reset": "forget the conversation, keep the system message",
    "/system TEXT": "set the system message and forget the conversation",
    "/help": "show this",
}


@click.command()
@options.package
@click.option("--system", metavar="TEXT", help="System message.")
@generation_options
@options.threads
def command(
    package: Path,
    system: str | None,
    threads: int | None,
    **generation: Unpack[OptionKeywords],
) -> None:
    """Talk to a model, with its own chat template.

    One line is one message; /help lists what else a line can be. Ctrl-C ends an answer, ctrl-D the program.
    Messages may also be piped to stdin.
    """
    check_greedy(generation)
    from q2export import api
    from q2export.runtime.scheduler import Scheduler, SchedulerOptions

    engine = api.load(package, threads=threads)
    # It keeps the keys and values of what was said: each turn computes only what is new.
    with Scheduler(engine, SchedulerOptions(rows=1)) as scheduler:
        _talk(Conversation(engine, scheduler, system, generation))


def _talk(conversation: Conversation) -> None:
    """Take lines until there are none, or one ends the program."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() its line editing and history

        click.echo("/help lists the commands", err=True)
    while (line := _read_line(interactive)) is not None:
        try:
            if not conversation.take(line):
                return
        except GenerationError as error:
            if not interactive:
                raise
            click.echo(f"error: {error}", err=True)


def _read_line(interactive: bool) -> str | None:
    """The next line of stdin without its newline; None at its end."""
    while True:
        try:
            return input("> ") if interactive else input()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo("\n(ctrl-D or /exit leaves)", err=True)


class Conversation:
    """Messages so far, the engine whose template they are put into, and what answers them."""

    def __init__(
        self, engine: Engine, scheduler: Scheduler, system: str | None, generation: OptionKeywords
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._system = system
        self._generation = generation
        self._messages: list[dict[str, str]] = []
        self._reset()

    def take(self, line: str) -> bool:
        """Do what one line asks for; False if it ends the program.

        Raises:
            GenerationError: the message cannot be answered; the conversation is as before.
        """
        word, _, rest = line.strip().partition(" ")
        if word == "/exit":
            return False
        if word == "/reset":
            self._reset()
        elif word == "/system":
            self._system = rest.strip() or None
            self._reset()
        elif word == "/help":
            for name, meaning in _COMMANDS.items():
                click.echo(f"{name:<14}{meaning}", err=True)
        elif word.startswith("/"):
            names = [name.split()[0] for name in _COMMANDS]
            click.echo(f"error: no command {word!r}{nearest(word, names)}", err=True)
        elif word:
            self._answer(line)
        return True

    def _reset(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def _answer(self, text: str) -> None:
        """Answer one message, printing as the text comes; ctrl-C keeps what was said until then."""
        messages = [*self._messages, {"role": "user", "content": text}]
        said, timings = [], None
        prompt = self._engine.chat_prompt(messages)
        try:
            with self._scheduler.submit(prompt, **self._generation) as events:
                for event in events:
                    said.append(event.text)
                    click.echo(event.text, nl=False)
                    if event.result is not None:
                        timings = event.result.timings
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True)
        click.echo()
        if timings is not None:
            click.echo(timings_text(timings), err=True)
        self._messages = [*messages, {"role": "assistant", "content": "".join(said)}]
