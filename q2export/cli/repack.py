"""``q2export repack``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from q2export.cli import options
from q2export.cli.output import aligned, print_json, warn
from q2export.cli.results import Row, checkpoint_document, checkpoint_rows

if TYPE_CHECKING:
    from q2export.exporter.quantization.published.repack import RepackResult
    from q2export.pipeline.results import CheckpointResult


@click.command()
@options.model
@options.revision
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@options.overwrite
@options.json_output
def command(model: str, revision: str | None, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write a GPTQ or AWQ checkpoint in the packed form.

    The quantized values stay what they are, bit for bit. Every command takes the result as --model; build
    does this itself.
    """
    from q2export import api
    from q2export.strict.codec import to_plain

    made = api.repack(model, output, revision=revision, overwrite=overwrite)
    warn(made.warnings)
    packed, weights = made.result.quantization, made.result.weights
    if as_json:
        print_json(checkpoint_document(made, {"quantization": to_plain(packed), "weights": weights}))
        return
    rows = checkpoint_rows(packed, made, weights, _details(made))
    click.echo(f"repacked {output}\n{aligned(rows, indent=2)}")


def _details(made: CheckpointResult[RepackResult]) -> Iterator[Row]:
    packed = made.result.quantization
    if packed.input_order:
        yield "act-order", "inputs are gathered in the order of the groups"
    if packed.keep:
        yield "kept", f"{len(packed.keep)} weights in floating point, as they were"
