"""How commands describe packages and checkpoints, to people and to programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from q2export.cli.output import aligned, format_bytes, format_seconds, print_json, warn
from q2export.contracts.commands import shown_path

if TYPE_CHECKING:
    from q2export.contracts.quantization import PackedQuantization
    from q2export.package.manifest import Manifest, QuantizationInfo
    from q2export.pipeline.results import BuildResult, CheckpointResult

Row = tuple[str, str]


def manifest_rows(manifest: Manifest) -> Iterator[Row]:
    """Model, engine, weights, parity and files of a package, as rows (what, value)."""
    model, engine, weights = manifest.model, manifest.engine, manifest.weights
    revision = f" @ {model.revision}" if model.revision else ""
    yield "model", f"{model.id}{revision} ({model.model_type}, {model.parameters:,} parameters)"
    rounds = manifest.profile is not None and manifest.profile.quantization.activations == "bfloat16"
    rounded = ", bfloat16 activations in matmuls" if rounds else ""
    yield "engine", f"{manifest.target}, {engine.dtype}{rounded}, KV cache {engine.kv_dtype}"
    if made_by := engine.tensorrt:
        title = "TensorRT-RTX" if made_by.builder == "rtx" else "TensorRT"
        yield (
            "built by",
            f"{title} {made_by.builder_version} for compute capability {made_by.compute_capability}",
        )
    yield "limits", f"batch {engine.max_batch}, capacity {engine.max_capacity:,} tokens"
    yield "weights in place", _weights_text(weights.in_place_bytes, weights.in_place_tensors)
    yield "weights converted", _weights_text(weights.converted_bytes, weights.converted_tensors)
    if (quantized := manifest.quantization) is not None:
        yield "weights quantized", _quantization_text(quantized)
        if quantized.kept_weights:
            size = format_bytes(quantized.kept_bytes)
            yield "weights kept", f"{quantized.kept_weights} matrices in high precision, {size}"
    yield "values checked", "yes" if weights.value_scan else "no"
    yield "parity", _parity_text(manifest)
    if manifest.quantization is not None:
        yield "quality", _quality_text(manifest)
    total = sum(file.bytes for file in manifest.files.values())
    yield "files", f"{len(manifest.files) + 1}, {format_bytes(total)}"


def show_package(verb: str, made: BuildResult, as_json: bool) -> None:
    """Print what ``build`` or ``export`` made; as JSON with the whole manifest and what each pass did."""
    from q2export.strict.codec import to_plain

    warn(made.warnings)
    if not as_json:
        rows = [
            ("onnx", f"{made.onnx.name}, {format_bytes(made.onnx.stat().st_size)}"),
            *manifest_rows(made.manifest),
            *_run_rows(made.peak_rss_bytes, sum(made.seconds.values())),
            *((f"  {stage}", format_seconds(seconds)) for stage, seconds in made.seconds.items()),
        ]
        click.echo(f"{verb} {shown_path(made.package)}\n{aligned(rows, indent=2)}")
        return
    passes = [
        {"name": name, "matched": matched, "refused": list(refused)} for name, matched, refused in made.passes
    ]
    print_json(
        {
            "package": str(made.package),
            "onnx": str(made.onnx),
            "seconds": dict(made.seconds),
            "peak_rss_bytes": made.peak_rss_bytes,
            "warnings": list(made.warnings),
            "passes": passes,
            "manifest": to_plain(made.manifest),
        }
    )


def checkpoint_rows(
    quantization: PackedQuantization, made: CheckpointResult[Any], weights: int, details: Iterable[Row]
) -> list[Row]:
    """What ``quantize`` or ``repack`` made: ``weights`` quantized ones, sizes, details, memory and time."""
    before, after = made.result.source_bytes, made.result.stored_bytes
    return [
        ("weights", f"{weights} quantized: {quantization.title}"),
        ("size", f"{format_bytes(before)} -> {format_bytes(after)}, {after / before:.1%}"),
        *details,
        *_run_rows(made.peak_rss_bytes, made.result.seconds),
    ]


def checkpoint_document(made: CheckpointResult[Any], details: Mapping[str, object]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "folder": str(made.folder),
        "seconds": made.result.seconds,
        "peak_rss_bytes": made.peak_rss_bytes,
        "source_bytes": made.result.source_bytes,
        "stored_bytes": made.result.stored_bytes,
        "warnings": list(made.warnings),
        **details,
    }


def _run_rows(peak_rss_bytes: int, seconds: float) -> Iterator[Row]:
    yield "peak memory", f"{format_bytes(peak_rss_bytes)} resident"
    yield "time", format_seconds(seconds)


def _weights_text(nbytes: int, tensors: int) -> str:
    return f"{format_bytes(nbytes)} in {tensors} tensors" if tensors else "none"


def _quantization_text(quantized: QuantizationInfo) -> str:
    size = format_bytes(quantized.quantized_bytes)
    activations = f"{quantized.activations} activations"
    return f"{size} in {quantized.quantized_weights} matrices: {quantized.title}; {activations}"


def _parity_text(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        return f"not checked: {manifest.parity_skipped}"
    return (
        f"{'passed' if parity.passed else 'FAILED'}, logit error at most {parity.max_abs_error:.1e}, "
        f"top-1 agreement {parity.top1_agreement:.2%} of {parity.tokens} tokens"
    )


def _quality_text(manifest: Manifest) -> str:
    found = manifest.quality
    if found is None:
        return f"not measured: {manifest.quality_skipped or 'not asked for'}"
    increase = found.quantized_perplexity / found.reference_perplexity - 1
    whose = "of the engine" if found.measured == "engine" else "of PyTorch with these weights"
    return (
        f"{'passed' if found.passed else 'BEYOND THE LIMITS'}, perplexity {increase:+.2%}, "
        f"mean KL {found.mean_kl:.3g} nats, top-1 agreement {found.top1_agreement:.2%} "
        f"of {found.tokens} tokens; logits {whose}"
    )
