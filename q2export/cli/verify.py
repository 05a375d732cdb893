"""``q2export verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from q2export.cli import options
from q2export.cli.output import print_json
from q2export.compare.options import GREEDY_TOKENS

if TYPE_CHECKING:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.verify.results import ParityReport


@click.command()
@options.package
@options.model
@options.revision
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Compare on this prompt; may be repeated.  [default: five built-in prompts]",
)
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 file to measure perplexity on.")
@click.option(
    "--greedy-tokens",
    type=click.IntRange(min=0),
    default=GREEDY_TOKENS,
    show_default=True,
    help="Tokens to generate after each prompt.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a self-contained HTML page.")
@click.option(
    "--runner",
    type=click.Choice(["q2export", "polygraphy"]),
    default="q2export",
    show_default=True,
    help="Compare now, or write a script that compares with NVIDIA's Polygraphy, wherever the engine runs.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to make, for --runner polygraphy."
)
@options.threads
@options.json_output
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
    runner: str,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare an engine with the PyTorch reference.

    Logits are compared on prompts and on what the engine generates from them. Where they differ too much, the
    first diverging layer is named and the exit code is 1.

    A package of quantized weights is compared with the quantized checkpoint. With the unquantized MODEL the
    report is about quality: perplexity, KL divergence and agreement on a text, the error of every layer
    and weight.

    With --runner polygraphy nothing is compared: the folder OUTPUT gets a script that does, with the inputs
    and the reference's logits of one step.
    """
    if runner == "polygraphy":
        _write_script(context, package, model, output, revision)
        return
    if output is not None:
        raise click.UsageError("--output is for --runner polygraphy; a report goes to stdout and --report")
    from q2export import api

    result = api.verify(
        package,
        model,
        revision=revision,
        prompts=list(prompts) or None,
        text=text,
        greedy_tokens=greedy_tokens,
        threads=threads,
        report=report,
    )
    if as_json:
        print_json(result.document())
    else:
        click.echo("\n".join(_lines(result)))
    if not result.passed:
        context.exit(1)


def _lines(result: ParityReport | QualityReport) -> list[str]:
    from q2export.compare.quality.results import QualityReport
    from q2export.compare.quality.summary import quality_lines
    from q2export.compare.verify.summary import summary_lines

    return quality_lines(result) if isinstance(result, QualityReport) else summary_lines(result)


# Of the comparison that is made here and now.
_COMPARING = ("prompts", "text", "greedy_tokens", "report", "threads", "as_json")


def _write_script(
    context: click.Context, package: Path, model: str, output: Path | None, revision: str | None
) -> None:
    if output is None:
        raise click.UsageError("--runner polygraphy needs --output, a folder to make")
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if parameter.name in _COMPARING and given:
            raise click.UsageError(
                f"{parameter.opts[0]} has no effect with --runner polygraphy; leave it out"
            )
    from q2export.compare.polygraphy_script import write_comparison

    written = write_comparison(package, model, output, revision=revision)
    click.echo(str(written.script))
    click.echo(f"run it with: python {written.script} --runner {' '.join(written.runners)}", err=True)
