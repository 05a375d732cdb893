"""``q2export triton``."""

from __future__ import annotations

from pathlib import Path

import click

from q2export.cli import options
from q2export.cli.output import print_json


@click.command()
@options.package
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="REPOSITORY",
    help="Model repository to write the model into; it may hold others.",
)
@click.option("--name", metavar="NAME", help="Name of the model.  [default: the package's folder]")
@click.option(
    "--copy",
    is_flag=True,
    help="Copy the package into the repository.  [default: the configuration says where it is]",
)
@click.option(
    "--rows", type=click.IntRange(1), help="Most texts generated at once.  [default: the package's]"
)
@click.option(
    "--max-queue",
    default=256,
    show_default=True,
    type=click.IntRange(0),
    help="Requests that may wait; others are refused as unavailable.",
)
@click.option(
    "--allow-special-tokens",
    is_flag=True,
    help="Let the text of a special token in text_input be that token.",
)
@options.threads
@options.overwrite
@options.json_output
def command(
    package: Path,
    output: Path,
    name: str | None,
    copy: bool,
    rows: int | None,
    max_queue: int,
    allow_special_tokens: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a model repository for Triton Inference Server.

    The model is one of Triton's Python backend, with answers as streams. The Python of the backend needs
    q2export with the extra "server".
    """
    from q2export.runtime.triton.repository import write_model
    from q2export.runtime.triton.settings import ModelSettings

    settings = ModelSettings(package, threads, rows, max_queue, allow_special_tokens)
    written = write_model(settings, output, name=name, copy=copy, overwrite=overwrite)
    if as_json:
        print_json({"folder": str(written.folder), "name": written.name, "package": str(written.package)})
    else:
        click.echo(f"wrote the model {written.name} into {output}")
