"""The stages ``build`` and ``export`` share, in order: weights, graph, files, manifest."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q2export.contracts import opspec
from q2export.contracts.profile import Profile
from q2export.contracts.quantization import PACKED_FORMAT_VERSION
from q2export.errors import PackageError, Q2ExportError
from q2export.package.manifest import (
    GRAPH_FILE,
    LIBRARIES,
    SHARD_FOLDER,
    TEXT_FILES,
    EngineInfo,
    Manifest,
    ModelInfo,
    ParitySummary,
    QualitySummary,
    QuantizationInfo,
    WeightsInfo,
    installed_versions,
)
from q2export.package.writer import PackageWriter
from q2export.pipeline.job import Job
from q2export.pipeline.stopwatch import Stopwatch

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig
    from q2export.exporter.checkpoint.source import Source
    from q2export.exporter.export import Graph
    from q2export.exporter.weights.sink import Scan

_CONVERTED_FILE = "weights.safetensors"
_CONFIG = "config.json"


@dataclass(frozen=True)
class Assembled:
    """A graph with its weights, in a package that is not complete yet.

    Attributes:
        source: the checkpoint whose weights the graph has; it may lie in the package.
        graph: what was written. weights: where its weights are.
        engine: describes the graph.
        quantization: None if no weight is quantized.
    """

    source: Source
    graph: Graph
    weights: WeightsInfo
    engine: EngineInfo
    quantization: QuantizationInfo | None


def assemble(job: Job, writer: PackageWriter, *, scan: Scan, watch: Stopwatch) -> Assembled:
    """Quantize the weights if that is asked for, trace, lower, and write graph, weights and texts.

    Args:
        job: what is made.
        writer: the package.
        scan: which values are checked.
        watch: of the stages.

    Raises:
        Q2ExportError: what one of the stages raises.
    """
    from q2export.exporter.export import build_graph

    weights, activations = job.weights, job.profile.quantization.activations
    with watch.stage("quantize") if weights.is_written else nullcontext():
        source = weights.prepare(writer.folder / SHARD_FOLDER)
    if weights.is_written:
        writer.add_written(f"{SHARD_FOLDER}/{_CONFIG}")
    with watch.stage("trace and lower"):
        graph = build_graph(source, job.target, job.dtype, kv_dtype=job.kv_dtype, activations=activations)
    info = _write_graph(job, writer, graph, scan, watch)
    writer.add_file(_CONFIG, source.folder / _CONFIG)
    for name in TEXT_FILES:
        if (weights.folder / name).exists():
            writer.add_file(name, weights.folder / name)
    engine = _engine_info(source.config, job)
    return Assembled(source, graph, info, engine, _quantization_info(source, job.profile))


def _write_graph(job: Job, writer: PackageWriter, graph: Graph, scan: Scan, watch: Stopwatch) -> WeightsInfo:
    """Place and convert the weights, attach them to the graph and write the ONNX file."""
    from q2export.exporter.weights.attach import attach, places_of, serialize
    from q2export.exporter.weights.convert import convert_weights
    from q2export.exporter.weights.place import place_weights

    plan = graph.plan
    with watch.stage("weights in place"):
        locations = place_weights(writer, plan, scan, job.weights.files)
    with watch.stage("weights converted"):
        places = places_of(plan, locations, convert_weights(writer, plan, _CONVERTED_FILE, scan))
    with watch.stage("onnx"):
        attach(graph.model, plan, places)
        writer.add_bytes(GRAPH_FILE, serialize(graph.model))
    return WeightsInfo(
        # quantizing checks every value
        value_scan=job.weights.is_written or scan == "all" or (scan == "converted" and not plan.in_place),
        files=writer.weights,
        in_place_bytes=plan.in_place_bytes,
        in_place_tensors=plan.in_place_tensors,
        converted_bytes=plan.converted_bytes,
        converted_tensors=len(plan.converted),
    )


def _quantization_info(source: Source, profile: Profile) -> QuantizationInfo | None:
    from q2export.exporter.checkpoint.parameters import expected_parameters
    from q2export.exporter.checkpoint.selection import is_quantizable

    quantization = source.quantization
    if quantization is None:
        return None
    kept = [
        source.checkpoint.tensors[name].nbytes
        for name in expected_parameters(source.config)
        if is_quantizable(name, embedding=True) and name not in source.packed
    ]
    return QuantizationInfo(
        **vars(quantization),
        format_version=PACKED_FORMAT_VERSION,
        activations=profile.quantization.activations,
        quantized_weights=len(source.packed),
        quantized_bytes=sum(weight.nbytes for weight in source.packed.values()),
        kept_weights=len(kept),
        kept_bytes=sum(kept),
    )


def _engine_info(config: ModelConfig, job: Job) -> EngineInfo:
    """What a backend must know of the graph."""
    dtype = job.dtype
    return EngineInfo(
        format="onnx",
        file=GRAPH_FILE,
        dtype=dtype,  # type: ignore[arg-type]
        kv_dtype=job.kv_dtype,  # type: ignore[arg-type]
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_batch=job.profile.batch.max,
        max_capacity=job.max_capacity,
        prefill_chunk=min(job.profile.prefill_chunk, job.max_capacity),
        context_length=config.context_length,
    )


def describe(
    job: Job,
    writer: PackageWriter,
    made: Assembled,
    engine: EngineInfo,
    *,
    parity: ParitySummary | None,
    parity_skipped: str | None,
    quality: QualitySummary | None = None,
    quality_skipped: str | None = None,
    profile: Profile | None,
) -> Manifest:
    """The manifest of the package.

    Args:
        job: what was made.
        writer: the package.
        made: graph and weights.
        engine: what the package is to run.
        parity, parity_skipped: outcome of the check, or why there is none.
        quality, quality_skipped: likewise, of quantized weights.
        profile: what it was built for; None for an exported graph.
    """
    from q2export.exporter.checkpoint.parameters import count_parameters

    config = made.source.config
    return Manifest(
        created=writer.created,
        op_contract_version=opspec.CONTRACT_VERSION,
        model=ModelInfo(
            job.model.id,
            job.model.revision,
            config.model_type,
            count_parameters(config),
            job.weights.folder.resolve().name,
        ),
        target=job.target,
        profile=profile,
        profile_overrides={} if profile is None else profile.overrides(),
        engine=engine,
        weights=made.weights,
        quantization=made.quantization,
        parity=parity,
        parity_skipped=parity_skipped,
        quality=quality,
        quality_skipped=quality_skipped,
        files=writer.files,
        libraries=installed_versions(LIBRARIES),
    )


def check_loads(job: Job, writer: PackageWriter, watch: Stopwatch) -> None:
    """Open the finished package as ``load`` will, the last thing before it is put in place.

    Raises:
        PackageError: it could not be loaded; names the file of the checkpoint at fault, where one is.
    """
    from q2export import runtime

    with watch.stage("open"):
        try:
            runtime.check_loads(writer.folder)
        except Q2ExportError as error:
            reason = str(error)
            for name in (_CONFIG, *TEXT_FILES):
                reason = reason.replace(str(writer.folder / name), str(job.weights.folder / name))
            reason = reason.replace(str(writer.folder), str(writer.output))
            raise PackageError(f"the engine could not be loaded, so nothing was kept: {reason}") from error
