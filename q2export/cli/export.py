"""``q2export export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from q2export.cli import options
from q2export.cli.results import show_package
from q2export.contracts.dtypes import FLOAT_NAMES

if TYPE_CHECKING:
    from q2export.contracts.quantization import WeightType
    from q2export.package.placement import PlacementMode


@click.command()
@options.model
@options.revision
@click.option(
    "--target",
    type=click.Choice(["portable", "onnxruntime", "onnxruntime-cuda", "tensorrt"]),
    default="portable",
    show_default=True,
    help="What is to run the graph; portable is any ONNX runtime.",
)
@click.option(
    "--dtype",
    type=click.Choice(FLOAT_NAMES),
    help="Type of weights and activations.  [default: the checkpoint's where the target runs in it; float32 "
    "for a portable graph of bfloat16 weights]",
)
@click.option(
    "--quantization",
    type=click.Choice(["none", "int4", "int8"]),
    default="none",
    show_default=True,
    help="Quantize the weights into the folder.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
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
    "--golden", is_flag=True, help="Also write inputs and outputs of one step, in Polygraphy's format."
)
@options.overwrite
@options.json_output
def command(
    model: str,
    revision: str | None,
    target: Literal["portable", "onnxruntime", "onnxruntime-cuda", "tensorrt"],
    dtype: str | None,
    quantization: WeightType,
    output: Path,
    weights: PlacementMode,
    golden: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint as an ONNX file for a target.

    Weights are used as they lie in the checkpoint's files where the target takes their type; no value is read
    then. The files are cloned or, where the file system cannot, copied; --weights link shares them instead.
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
        quantization=Quantization(weights=quantization),
    )
    show_package("exported", result, as_json)
