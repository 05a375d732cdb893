"""``q2export quantize``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from q2export.cli import options
from q2export.cli.output import aligned, print_json, warn
from q2export.cli.results import Row, checkpoint_document, checkpoint_rows
from q2export.contracts.quantization import CALIBRATION_TOKENS, PackedQuantization

if TYPE_CHECKING:
    from q2export.exporter.quantization.quantize import QuantizeResult
    from q2export.pipeline.results import CheckpointResult

_LARGEST = 3  # weights with the largest error that are shown


@click.command()
@options.model
@options.revision
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--quantization",
    type=click.Choice(["int4", "int8"]),
    default="int4",
    show_default=True,
    help="Type of the quantized weights.",
)
@click.option(
    "--block-size",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Number of values that share a scale.",
)
@click.option("--asymmetric", is_flag=True, help="Store a zero point per block.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Keep weights whose names match, such as 'model.layers.0.*', in high precision. May be repeated.",
)
@click.option(
    "--no-embedding", is_flag=True, help="Keep the embedding and the output head in high precision."
)
@click.option(
    "--method",
    type=click.Choice(["round-to-nearest", "gptq"]),
    help="Quantization method.  [default: gptq with --calibration, round-to-nearest without]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="UTF-8 text to calibrate gptq on, like the text the model will see.",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    help="Tokens of the calibration text to use, at most; a mixture of experts needs more."
    f"  [default: {CALIBRATION_TOKENS}]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Compare with the original model, layer by layer, and write an HTML report.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text to compare on.  [default: a short built-in text]",
)
@options.overwrite
@options.json_output
def command(
    model: str,
    revision: str | None,
    output: Path,
    quantization: Literal["int4", "int8"],
    block_size: str,
    asymmetric: bool,
    keep: tuple[str, ...],
    no_embedding: bool,
    method: Literal["round-to-nearest", "gptq"] | None,
    calibration: Path | None,
    calibration_tokens: int | None,
    report: Path | None,
    text: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint with quantized weights.

    Every command takes the result as --model. Norms, biases and routers stay as they are. With --report or
    --text the result is compared with the original: perplexity, KL divergence, top-1 agreement, the error of
    every layer and weight.
    """
    from q2export import api
    from q2export.compare.report.page import check_writable

    if report is not None:
        check_writable(report)
    made = api.quantize(
        model,
        output,
        weights=quantization,
        block_size=int(block_size),
        symmetric=not asymmetric,
        embedding=not no_embedding,
        keep=keep,
        method=method,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        revision=revision,
        overwrite=overwrite,
    )
    warn(made.warnings)
    quality = None
    if report is not None or text is not None:
        quality = api.quality_report(model, output, text=text, revision=revision)
    if report is not None and quality is not None:
        from q2export.compare.quality.page import quality_page

        quality_page(quality).write(report)
    if as_json:
        print_json({**_document(made), **({"quality": quality.document()} if quality else {})})
        return
    packed = PackedQuantization.of(made.result.quantization)
    rows = checkpoint_rows(packed, made, len(made.result.weights), _details(made.result))
    click.echo(f"quantized {output}\n{aligned(rows, indent=2)}")
    if quality is not None:
        from q2export.compare.quality.summary import quality_lines

        click.echo("\n".join(quality_lines(quality)))


def _details(result: QuantizeResult) -> Iterator[Row]:
    yield "error", f"{result.relative_error:.2%} of the root mean square of all quantized values"
    largest = sorted(result.weights, key=lambda one: one.relative_error, reverse=True)[:_LARGEST]
    yield from (("  largest", f"{one.relative_error:.2%} {one.name}") for one in largest)
    if result.quantization.method != "round-to-nearest" and (rounded := _rounded(result)):
        first = f"{rounded[0]} and {len(rounded) - 1} more" if rounded[1:] else rounded[0]
        yield "rounded to nearest", f"{first}: too few tokens read, or none"
    yield from (("padded", f"{name} {a} -> {b}, with zeros") for name, (a, b) in result.padded.items())


def _rounded(result: QuantizeResult) -> list[str]:
    """Weights that a method that calibrates rounded to nearest after all."""
    return [one.name for one in result.weights if one.method == "round-to-nearest"]


def _document(made: CheckpointResult[QuantizeResult]) -> dict[str, Any]:
    from q2export.strict.codec import to_plain

    result = made.result
    details = {
        "quantization": to_plain(result.quantization),
        "relative_error": result.relative_error,
        "padded": {name: list(sizes) for name, sizes in result.padded.items()},
        "weights": [{**to_plain(one), "relative_error": one.relative_error} for one in result.weights],
    }
    return checkpoint_document(made, details)
