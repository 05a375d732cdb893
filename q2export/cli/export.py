"""``q2export export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_bytes, print_json, warn
from q2export.cli.results import manifest_rows, run_document, run_rows
from q2export.contracts.dtypes import FLOAT_NAMES

if TYPE_CHECKING:
    from q2export.contracts.quantization import WeightType
    from q2export.package.placement import PlacementMode


@click.command()
@options.model
@options.revision
@click.option(
    "--target",
    type=click.Choice(["portable", "onnxruntime", "tensorrt"]),
    default="portable",
    show_default=True,
    help="Portable runs in any ONNX runtime; the others are lowered for one.",
)
@click.option(
    "--dtype",
    type=click.Choice(FLOAT_NAMES),
    help="Type of weights and activations.  [default: the checkpoint's where the target runs in it; float32 "
    "for a portable graph of bfloat16 weights]",
)
@options.quantization
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "link", "auto"]),
    default="copy",
    show_default=True,
    help="How weights used in place get into the folder: copies, which every ONNX tool opens; hard links of "
    "the checkpoint's files, which take no space but which onnx.load, onnx.checker and polygraphy refuse; or "
    "links where possible.",
)
@click.option(
    "--golden", is_flag=True, help="Also write inputs and outputs of one step, in polygraphy's format."
)
@options.overwrite
@options.json_output
def command(
    model: str,
    revision: str | None,
    target: Literal["portable", "onnxruntime", "tensorrt"],
    dtype: str | None,
    quantization: WeightType | None,
    output: Path,
    weights: PlacementMode,
    golden: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint as an ONNX file for a target.

    Weights stay in the checkpoint's own files where the target takes their type; no value is read then.
    """
    from q2export import api
    from q2export.contracts.quantization import Quantization

    result = api.export(
        model,
        output,
        target=target,
        dtype=dtype,
        revision=revision,
        weights=weights,
        golden=golden,
        overwrite=overwrite,
        quantization=Quantization(weights=quantization or "none"),
    )
    warn(result.warnings)
    if not as_json:
        rows = [("onnx", f"{result.onnx.name}, {format_bytes(result.onnx.stat().st_size)}")]
        rows += [*manifest_rows(result.manifest), *run_rows(result.seconds, result.peak_rss_bytes)]
        click.echo(f"exported {output}\n{aligned(rows, indent=2)}")
        return
    document = run_document(
        result.manifest,
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        warnings=result.warnings,
        passes=result.passes,
    )
    print_json({"folder": str(result.package), "onnx": str(result.onnx), **document})
