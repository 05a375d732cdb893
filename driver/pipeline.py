"""The stages of ``build``, ``export`` and ``verify``, in order. This module alone joins the rooms."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from q2export import opspec
from q2export.errors import ExportError, PackageError, ParityError
from q2export.manifest import (
    GRAPH_FILE,
    EngineInfo,
    Manifest,
    ModelInfo,
    ParitySummary,
    WeightFile,
    WeightsInfo,
    installed_versions,
)
from q2export.package import PackageWriter
from q2export.placement import PlacementMode, require_free_space
from q2export.profile import Profile
from q2export.progress import progress_bar

if TYPE_CHECKING:
    from q2export.exporter.bind import BindingPlan
    from q2export.exporter.export import Graph, Source, Target
    from q2export.runtime.verify.contracts import EngineProbe, ReferenceRun
    from q2export.runtime.verify.results import ParityReport

CONVERTED_FILE = "weights.safetensors"
SHARD_FOLDER = "weights"
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "tokenizers", "polygraphy")


@dataclass
class Stopwatch:
    """Seconds each stage took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as the stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_rss_bytes() -> int:
    """Largest resident set of this program so far, in bytes.

    From ``/proc``, where it tells: ``getrusage`` counts the process that started this one as well, because a
    child shares its parent's memory until it calls exec.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Written:
    """What writing the weights and the graph did."""

    weights: WeightsInfo
    onnx_bytes: int


Scan = Literal["all", "converted", "none"]
"""Which weights are checked for NaN, infinity and overflow: all, those read anyway to be converted, none."""


def write_graph(
    writer: PackageWriter, graph: Graph, *, scan: Scan, placement: PlacementMode, watch: Stopwatch
) -> Written:
    """Place and convert the weights, attach them to the graph and write the ONNX file.

    Raises:
        CheckpointError: the scan found a value, or a file changed meanwhile.
        PackageError: no space, or the weights cannot be linked where that was asked for.
    """
    from q2export.exporter.attach import attach
    from q2export.exporter.bind import scan_shard
    from q2export.exporter.convert import write_converted

    plan = graph.plan
    files: list[WeightFile] = []
    locations: dict[Path, str] = {}
    with watch.stage("weights in place"):
        for shard in plan.shards:
            sha256 = None
            if scan == "all":
                with progress_bar(f"checking {shard.name}", shard.stat().st_size) as advance:
                    sha256 = scan_shard(plan, shard, advance)
            name = f"{SHARD_FOLDER}/{shard.relative_to(plan.checkpoint.folder).as_posix()}"
            files.append(writer.place_weights(shard, name, placement, sha256))
            locations[shard] = name
    with watch.stage("weights converted"):
        if plan.converted:
            require_free_space(writer.folder, plan.converted_bytes, "converted weights")
            with (
                progress_bar("converting weights", plan.converted_bytes) as advance,
                writer.open_hashed(CONVERTED_FILE) as sink,
            ):
                write_converted(plan, sink, scan=scan != "none", advance=advance)
            sources = sorted({ref.file.name for binding in plan.converted for ref in binding.sources})
            size = writer.files[CONVERTED_FILE].bytes
            files.append(WeightFile(CONVERTED_FILE, "converted", tuple(sources), size))
    with watch.stage("onnx"):
        attach(graph.model, plan, locations, CONVERTED_FILE if plan.converted else None)
        data = serialize(graph)
        writer.add_bytes(GRAPH_FILE, data)
    checked = scan == "all" or (scan == "converted" and not plan.in_place)
    return Written(_weights_info(plan, files, checked), len(data))


def serialize(graph: Graph) -> bytes:
    """The ONNX file of a graph whose weights are attached, after onnx.checker has passed it.

    Raises:
        ExportError: the checker refuses the graph, which is a fault of the exporter.
    """
    import onnx
    import onnx_ir as ir

    from q2export.exporter.check import check_structure

    proto = ir.to_proto(graph.model)
    check_structure(proto)
    data: bytes = proto.SerializeToString()
    if len(data) >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"the graph alone takes {len(data)} bytes, more than a protobuf file may have")
    return data


def _weights_info(plan: BindingPlan, files: Sequence[WeightFile], value_scan: bool) -> WeightsInfo:
    return WeightsInfo(
        value_scan=value_scan,
        files=tuple(files),
        in_place_bytes=plan.in_place_bytes,
        in_place_tensors=plan.in_place_tensors,
        converted_bytes=plan.converted_bytes,
        converted_tensors=len(plan.converted),
    )


def copy_texts(writer: PackageWriter, folder: Path) -> None:
    """Copy configuration, tokenizer and chat template, byte for byte, those that exist."""
    for name in _COPIED:
        if (folder / name).exists():
            writer.add_file(name, folder / name)


def engine_info(source: Source, profile: Profile, dtype: str) -> EngineInfo:
    """What a backend must know of the engine."""
    config = source.config
    return EngineInfo(
        format="onnx",
        file=GRAPH_FILE,
        dtype=dtype,  # type: ignore[arg-type]
        kv_dtype=dtype,  # type: ignore[arg-type]
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_batch=profile.batch.max,
        max_capacity=max_capacity(source, profile),
        prefill_chunk=min(profile.prefill_chunk, max_capacity(source, profile)),
        context_length=config.context_length,
    )


def max_capacity(source: Source, profile: Profile) -> int:
    """Largest capacity of the engine: the profile's, but not more than the model was made for."""
    return min(profile.capacity.max, source.config.context_length)


def manifest(
    writer: PackageWriter,
    source: Source,
    written: Written,
    engine: EngineInfo,
    *,
    model_id: str,
    revision: str | None,
    target: Target,
    profile: Mapping[str, object],
    overrides: Mapping[str, object],
    parity: ParitySummary | None,
    parity_skipped: str | None,
) -> Manifest:
    """Describe the package."""
    from q2export.exporter.parameters import expected_parameters

    parameters = sum(math.prod(shape) for shape in expected_parameters(source.config).values())
    return Manifest(
        op_contract_version=opspec.CONTRACT_VERSION,
        model=ModelInfo(
            model_id, revision, source.config.model_type, parameters, source.folder.resolve().name
        ),
        target=target,
        profile=profile,
        profile_overrides=overrides,
        engine=engine,
        weights=written.weights,
        parity=parity,
        parity_skipped=parity_skipped,
        files=writer.files,
        libraries=installed_versions(_LIBRARIES),
    )


@dataclass(frozen=True)
class StreamedReference:
    """The exporter's reference in the form the runtime's comparison takes."""

    source: Source

    def run(self, sequences: Sequence[Sequence[int]], capture: Collection[str] = ()) -> ReferenceRun:
        """See :meth:`q2export.runtime.verify.contracts.Reference.run`."""
        from q2export.exporter.reference import CheckpointReference
        from q2export.runtime.verify.contracts import ReferenceRun

        result = CheckpointReference(self.source).run(sequences, capture)
        return ReferenceRun(result.logits, result.captures)


def engine_probe(folder: Path, engine: EngineInfo, *, threads: int, rebuild_command: str) -> EngineProbe:
    """The engine in ``folder``, to be compared.

    Args:
        folder: a package, perhaps not yet complete.
        engine: what it holds.
        threads: CPU threads of an ONNX Runtime engine; 0 is one per core.
        rebuild_command: for messages.

    Raises:
        PackageError: a TensorRT engine cannot run here, for want of a GPU, say.
    """
    from q2export.runtime.verify.backend_probe import BackendProbe
    from q2export.runtime.verify.onnxruntime_probe import OnnxRuntimeProbe

    if engine.tensorrt is None:
        return OnnxRuntimeProbe(folder, engine, threads=threads)
    from q2export.runtime.backends.tensorrt.session import open_backend

    backend = open_backend(folder, engine, engine.tensorrt, rebuild_command)
    return BackendProbe(lambda: backend)


def parity_report(
    name: str,
    probe: EngineProbe,
    source: Source,
    profile: Profile,
    prompts: Sequence[Sequence[int]],
    *,
    model_id: str,
    command: str,
    greedy_tokens: int,
    text_tokens: Sequence[int] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> ParityReport:
    """Compare an engine, called ``name`` in the report, with the PyTorch reference of the checkpoint."""
    from q2export.runtime.verify.compare import compare
    from q2export.runtime.verify.results import RunInfo

    info = RunInfo(name, model_id, command, installed_versions(_LIBRARIES))
    return compare(
        StreamedReference(source),
        probe,
        prompts,
        profile.parity,
        info=info,
        n_greedy=greedy_tokens,
        text_tokens=text_tokens,
        decode=decode,
    )


def parity_summary(report: ParityReport) -> ParitySummary:
    """The numbers of a report that go into the manifest."""
    total = report.total
    if total is None:
        raise ParityError("parity failed: " + "; ".join(report.failures))
    return ParitySummary(
        passed=report.passed,
        tokens=total.tokens,
        max_abs_error=total.max_abs_error,
        mean_abs_error=total.mean_abs_error,
        max_kl=total.max_kl,
        min_cosine=total.min_cosine,
        top1_agreement=total.top1_agreement_with_ties,
    )


def check_same_model(manifest: Manifest, source: Source) -> None:
    """Refuse a checkpoint of another shape: comparing it would only say that it is another model."""
    engine, config = manifest.engine, source.config
    pairs = {
        "model_type": (manifest.model.model_type, config.model_type),
        "num_hidden_layers": (engine.num_hidden_layers, config.num_hidden_layers),
        "num_key_value_heads": (engine.num_key_value_heads, config.num_key_value_heads),
        "head_dim": (engine.head_dim, config.head_dim),
        "vocab_size": (engine.vocab_size, config.vocab_size),
    }
    for name, (built, found) in pairs.items():
        if built != found:
            raise PackageError(
                f"{source.folder}: not the model this package was built from: {name} is "
                f"{found}, the package has {built}"
            )


def dump_json(data: object) -> str:
    """JSON text as the package's files have it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
