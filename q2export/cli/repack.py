"""``q2export repack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_bytes, format_seconds, print_json, warn

if TYPE_CHECKING:
    from q2export.exporter.quantization.published.repack import RepackResult
    from q2export.pipeline.results import CheckpointResult


@click.command()
@options.model
@options.revision
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@options.overwrite
@options.json_output
def command(model: str, revision: str | None, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write a GPTQ or AWQ checkpoint in the packed form.

    The quantized values stay what they are, bit for bit. Every command takes the result as --model; build
    does this itself.
    """
    from q2export import api

    made = api.repack(model, output, revision=revision, overwrite=overwrite)
    warn(made.warnings)
    if as_json:
        print_json(_document(made))
    else:
        click.echo(f"repacked {output}\n{aligned(_rows(made), indent=2)}")


def _rows(made: CheckpointResult[RepackResult]) -> list[tuple[str, str]]:
    result = made.result
    scheme = result.quantization
    zero_points = "symmetric" if scheme.symmetric else "with zero points"
    kind = f"int{scheme.bits}, blocks of {scheme.block_size}, {zero_points}, {result.quantization.method}"
    rows = [
        ("weights", f"{result.weights} quantized: {kind}"),
        ("size", f"{format_bytes(result.source_bytes)} -> {format_bytes(result.stored_bytes)}"),
    ]
    if result.quantization.input_order:
        rows.append(("act-order", "inputs are gathered in the order of the groups"))
    if result.quantization.keep:
        rows.append(("kept", f"{len(result.quantization.keep)} weights in floating point, as they were"))
    rows.append(("peak memory", f"{format_bytes(made.peak_rss_bytes)} resident"))
    rows.append(("time", format_seconds(result.seconds)))
    return rows


def _document(made: CheckpointResult[RepackResult]) -> dict[str, Any]:
    from q2export.strict.codec import to_plain

    result = made.result
    return {
        "folder": str(made.folder),
        "stored": to_plain(result.quantization),
        "seconds": result.seconds,
        "peak_rss_bytes": made.peak_rss_bytes,
        "source_bytes": result.source_bytes,
        "stored_bytes": result.stored_bytes,
        "weights": result.weights,
        "warnings": list(made.warnings),
    }
