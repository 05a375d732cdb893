"""How ``build``, ``export`` and ``inspect`` describe a package, to people and to programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from q2export.cli.output import format_bytes, format_seconds

if TYPE_CHECKING:
    from q2export.package.manifest import Manifest, QuantizationInfo

Row = tuple[str, str]


def manifest_rows(manifest: Manifest) -> Iterator[Row]:
    """Model, engine, weights, parity and files of a package, as rows (what, value)."""
    model, engine, weights = manifest.model, manifest.engine, manifest.weights
    revision = f" @ {model.revision}" if model.revision else ""
    yield "model", f"{model.id}{revision} ({model.model_type}, {model.parameters:,} parameters)"
    yield "engine", f"{manifest.target}, {engine.dtype}, KV cache {engine.kv_dtype}"
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


def run_rows(seconds: Mapping[str, float], peak_rss_bytes: int) -> Iterator[Row]:
    """Memory and time of a run, the time by stage."""
    yield "peak memory", f"{format_bytes(peak_rss_bytes)} resident"
    yield "time", format_seconds(sum(seconds.values()))
    for stage, duration in seconds.items():
        yield f"  {stage}", format_seconds(duration)


def run_document(
    manifest: Manifest,
    *,
    seconds: Mapping[str, float],
    peak_rss_bytes: int,
    warnings: Sequence[str],
    passes: Sequence[tuple[str, int, Sequence[str]]],
) -> dict[str, Any]:
    """The same for programs, with the whole manifest and what each pass did."""
    from q2export.strict.codec import to_plain

    return {
        "seconds": dict(seconds),
        "peak_rss_bytes": peak_rss_bytes,
        "warnings": list(warnings),
        "passes": [
            {"name": name, "matched": matched, "refused": list(refused)} for name, matched, refused in passes
        ],
        "manifest": to_plain(manifest),
    }


def _weights_text(nbytes: int, tensors: int) -> str:
    return f"{format_bytes(nbytes)} in {tensors} tensors" if tensors else "none"


def _quantization_text(quantized: QuantizationInfo) -> str:
    kind = f"int{quantized.bits}, block {quantized.block_size}"
    symmetry = "symmetric" if quantized.symmetric else "asymmetric"
    activations = f"{quantized.activations} activations"
    size = format_bytes(quantized.quantized_bytes)
    count = quantized.quantized_weights
    return f"{size} in {count} matrices: {kind}, {symmetry}, {quantized.method}; {activations}"


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
