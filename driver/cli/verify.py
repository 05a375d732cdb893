"""``q2export verify``."""

from __future__ import annotations

from pathlib import Path

import click

from q2export.cli import options
from q2export.cli.input import read_text


@click.command()
@options.package
@options.model
@options.revision
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Compare on this prompt; repeatable.  [default: built in]",
)
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 file to measure perplexity on.")
@click.option(
    "--greedy-tokens",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="To generate after each prompt.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a self-contained HTML page.")
@options.threads
@click.pass_context
def command(
    context: click.Context,
    package: Path,
    model: str,
    revision: str | None,
    prompts: tuple[str, ...],
    text: Path | None,
    greedy_tokens: int,
    report: Path | None,
    threads: int | None,
) -> None:
    """Compare an engine with the PyTorch reference.

    Logits are compared on prompts and on what the engine generates from them. The report goes to stdout as
    JSON, a summary to stderr. Where they differ too much, the first diverging layer is named and the exit
    code is 1.
    """
    from q2export import api
    from q2export.runtime.verify.summary import summary_lines

    result = api.verify(
        package,
        model,
        revision=revision,
        prompts=list(prompts) or None,
        text=read_text(text) if text else None,
        greedy_tokens=greedy_tokens,
        threads=threads,
        report=report,
    )
    click.echo(result.to_json())
    click.echo("\n".join(summary_lines(result)), err=True)
    if not result.passed:
        context.exit(1)
