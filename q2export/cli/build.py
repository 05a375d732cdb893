"""``q2export build``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_bytes, print_json, warn
from q2export.cli.results import show_package
from q2export.cli.settings import overrides_of, value_rows

if TYPE_CHECKING:
    from q2export.package.placement import PlacementMode


@click.command()
@options.model
@options.revision
@options.profile
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one value of the profile, such as capacity.max=4096. May be repeated.",
)
@click.option(
    "--quantization",
    type=click.Choice(["none", "int4", "int8"]),
    help="Quantize the weights into the package.  [default: the profile's]",
)
@click.option(
    "--builder",
    type=click.Choice(["auto", "tensorrt", "rtx", "onnxruntime"]),
    help="What makes an engine for a GPU: the full TensorRT, TensorRT-RTX, or ONNX Runtime. The last two "
    "need no GPU to build.  [default: the profile's]",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Kernel timings of the full TensorRT: read, and updated for the next build.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Package folder to write.")
@click.option("--no-parity", is_flag=True, help="Skip the comparison with PyTorch.")
@click.option(
    "--quality-text",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text to measure the quality loss of quantization on.  [default: a short built-in text]",
)
@click.option(
    "--allow-quality-loss",
    is_flag=True,
    help="Keep the engine even if quantization costs more quality than the profile allows.",
)
@click.option(
    "--no-value-scan", is_flag=True, help="Skip the search for NaN, infinity and overflow in the weights."
)
@click.option(
    "--weights",
    type=click.Choice(["auto", "link", "copy"]),
    default="auto",
    show_default=True,
    help="How weights used in place get into the package: hard links of the checkpoint's files, which take "
    "no space but which onnx.load and polygraphy refuse; copies; or links where possible.",
)
@options.overwrite
@click.option("--dry-run", is_flag=True, help="Resolve the build without executing it.")
@options.json_output
def command(
    model: str,
    revision: str | None,
    profile: str,
    settings: tuple[str, ...],
    quantization: str | None,
    builder: str | None,
    timing_cache: Path | None,
    output: Path | None,
    no_parity: bool,
    quality_text: Path | None,
    allow_quality_loss: bool,
    no_value_scan: bool,
    weights: PlacementMode,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build an engine package from a checkpoint, and check its parity.

    The package is complete or not there at all: it appears under its name when every check has passed. With
    --dry-run nothing is built; every value of the profile, sizes and memory are shown.
    """
    from q2export import api

    overrides = overrides_of(
        settings,
        {"quantization.weights": ("--quantization", quantization), "builder": ("--builder", builder)},
    )
    if dry_run:
        plan = api.plan(
            model,
            profile=profile,
            overrides=overrides,
            revision=revision,
            parity=not no_parity,
            timing_cache=timing_cache,
            quality_text=quality_text,
            allow_quality_loss=allow_quality_loss,
        )
        warn(plan["warnings"])
        if as_json:
            print_json(plan)
        else:
            click.echo(_plan_text(plan))
        return
    if output is None:
        raise click.UsageError("missing option '-o' / '--output' (or give --dry-run)")
    result = api.build(
        model,
        output,
        profile=profile,
        overrides=overrides,
        revision=revision,
        parity=not no_parity,
        value_scan=not no_value_scan,
        weights=weights,
        timing_cache=timing_cache,
        quality_text=quality_text,
        allow_quality_loss=allow_quality_loss,
        overwrite=overwrite,
    )
    show_package("built", result, as_json)


def _plan_text(plan: Mapping[str, Any]) -> str:
    model, weights = plan["model"], plan["weights"]
    revision = f" @ {model['revision']}" if model["revision"] else ""
    rows = [
        ("model", f"{model['id']}{revision}: {model['model_type']}, {model['dtype']}"),
        ("engine", f"{plan['target']}, {plan['dtype']}, capacity {plan['max_capacity']:,} tokens"),
        ("weights in place", format_bytes(weights["in_place_bytes"])),
        ("weights converted", format_bytes(weights["converted_bytes"])),
        *_quantization_rows(plan),
        ("KV cache", f"{format_bytes(plan['kv_cache_bytes_per_token'])} per token"),
    ]
    if engine := plan["gpu"]:
        rows += _engine_rows(engine)
    values = value_rows(plan["profile"], plan["origin"])
    return f"{aligned(rows)}\n\nprofile\n{aligned(values, indent=2)}"


def _quantization_rows(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from q2export.contracts.quantization import PackedQuantization

    packed = plan["quantization"]
    if packed is None:
        return
    size = format_bytes(plan["weights"]["quantized_bytes"])
    yield "quantized", f"{size} of these: {PackedQuantization(**packed).title}"


def _engine_rows(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpu, free = engine["gpu_bytes"], engine["host_available_bytes"]
    parts = ", ".join(
        f"{what.replace('_', ' ')} {format_bytes(gpu[what])}" for what in gpu if what != "total"
    )
    if streamed := engine["streamed_weight_bytes"]:
        parts += f"; {format_bytes(streamed)} of weights in host memory"
    rows = [
        ("builder", " ".join(filter(None, (engine["builder"], engine["builder_version"])))),
        ("GPU memory", f"{format_bytes(gpu['total'])}: {parts}"),
    ]
    if engine["host_bytes"] is not None:
        at_hand = f", {format_bytes(free)} free" if free is not None else ""
        rows.append(("RAM to build", f"{format_bytes(engine['host_bytes'])}{at_hand}"))
    return rows
