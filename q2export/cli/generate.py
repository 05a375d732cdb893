"""``q2export generate``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from q2export.cli import options
from q2export.cli.input import read_stdin, read_text
from q2export.cli.output import print_json
from q2export.cli.sampling import check_greedy, generation_options, timings_text
from q2export.errors import GenerationError

if TYPE_CHECKING:
    from typing import Unpack

    from q2export.runtime.options import OptionKeywords
    from q2export.runtime.results import GenerationResult, TokenEvent


@click.command()
@options.package
@click.option("--prompt", metavar="TEXT", help="The prompt.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Read the prompt from a UTF-8 file.")
@click.option(
    "--chat", is_flag=True, help="Put the prompt into the model's chat template, as a user's message."
)
@generation_options
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print the text as it comes.  [default: unless --json is given]",
)
@options.threads
@options.json_output
def command(
    package: Path,
    prompt: str | None,
    prompt_file: Path | None,
    chat: bool,
    stream: bool | None,
    threads: int | None,
    as_json: bool,
    **generation: Unpack[OptionKeywords],
) -> None:
    """Generate text from a prompt.

    The prompt is --prompt, --prompt-file or stdin; one newline at the end of a file or of stdin is dropped.
    What is not given here comes from the package's generation_config.json.
    """
    check_greedy(generation)
    if as_json and stream:
        raise click.UsageError("--json and --stream contradict each other")
    text = _prompt(prompt, prompt_file)

    from q2export import api

    engine = api.load(package, threads=threads)
    tokens = engine.chat_prompt([{"role": "user", "content": text}]) if chat else text
    events = engine.stream(tokens, **generation)
    result = _run(events, show=stream is not False and not as_json)
    if as_json:
        from q2export.strict.codec import to_plain

        plain = to_plain(result)
        print_json({"prompt": text, "text": plain.pop("decoded"), **plain})
    elif stream is False:
        click.echo(result.text)
    click.echo(timings_text(result.timings), err=True)


def _run(events: Iterable[TokenEvent], show: bool) -> GenerationResult:
    """Consume a stream, printing it as it comes if asked, and return its result."""
    result = None
    for event in events:
        if show:
            click.echo(event.text, nl=False)
        result = event.result
    if result is None:
        raise GenerationError("the engine ended without a result")
    if show:
        click.echo()
    return result


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("--prompt and --prompt-file contradict each other")
    if prompt is not None:
        return prompt
    if prompt_file is None and sys.stdin.isatty():
        raise click.UsageError("missing prompt: give --prompt, --prompt-file, or pipe it to stdin")
    return read_text(prompt_file) if prompt_file else read_stdin()
