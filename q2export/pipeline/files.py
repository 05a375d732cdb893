"""Writing a graph and its weights into a package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from q2export.contracts.progress import progress_bar
from q2export.errors import ExportError
from q2export.package.manifest import GRAPH_FILE, WeightFile, WeightsInfo
from q2export.package.placement import PlacementMode, require_free_space
from q2export.package.writer import PackageWriter
from q2export.pipeline.stopwatch import Stopwatch

if TYPE_CHECKING:
    from q2export.exporter.export import Graph
    from q2export.exporter.weights.bind import BindingPlan

CONVERTED_FILE = "weights.safetensors"
PREFILL_GRAPH_FILE, PREFILL_WEIGHTS_FILE = "prefill.onnx", "prefill.safetensors"
SHARD_FOLDER = "weights"
"""Of the package: files of the checkpoint, or a checkpoint in the packed form that was made of it."""


Scan = Literal["all", "converted", "none"]
"""Which weights are checked for NaN, infinity and overflow: all, those read anyway to be converted, none."""


@dataclass(frozen=True)
class Written:
    """What writing the weights and the graph did."""

    weights: WeightsInfo
    onnx_bytes: int


def write_graph(
    writer: PackageWriter,
    graph: Graph,
    prefill: Graph | None = None,
    *,
    scan: Scan,
    placement: PlacementMode,
    watch: Stopwatch,
    quantized_from: Sequence[str] = (),
) -> Written:
    """Place and convert the weights, attach them to the graph and write the ONNX file.

    Args:
        writer: the package.
        graph: its weights are in a checkpoint, or in :data:`SHARD_FOLDER` of the package.
        prefill: a second graph of the same weights, and of others made of them.
        scan: which values are checked.
        placement: how files used in place get into the package.
        watch: of the stages.
        quantized_from: names of the files a checkpoint in the package was made of.

    Raises:
        CheckpointError: the scan found a value, or a file changed meanwhile.
        PackageError: no space, or the weights cannot be linked where that was asked for.
    """
    from q2export.exporter.weights.attach import attach, places_of

    plan = graph.plan
    is_here = plan.checkpoint.folder == writer.folder / SHARD_FOLDER
    with watch.stage("weights in place"):
        if is_here:
            placed = {shard: _record(writer, plan, shard, quantized_from) for shard in plan.checkpoint.files}
            writer.add_written(f"{SHARD_FOLDER}/config.json")
        else:
            placed = {shard: _place(writer, plan, shard, scan, placement) for shard in plan.shards}
    files = [*placed.values()]
    own = None if prefill is None else prefill.plan.without(plan)
    with watch.stage("weights converted"):
        if plan.converted:
            files.append(_convert(writer, plan, CONVERTED_FILE, scan))
        if own is not None:
            files.append(_convert(writer, own, PREFILL_WEIGHTS_FILE, scan))
    with watch.stage("onnx"):
        locations = {shard: file.path for shard, file in placed.items()}
        places = places_of(plan, locations, CONVERTED_FILE if plan.converted else None)
        attach(graph.model, plan, places)
        data = serialize(graph)
        writer.add_bytes(GRAPH_FILE, data)
        if prefill is not None and own is not None:
            attach(prefill.model, prefill.plan, places_of(own, locations, PREFILL_WEIGHTS_FILE) | places)
            writer.add_bytes(PREFILL_GRAPH_FILE, serialize(prefill))
    # quantizing checks every value
    checked = is_here or scan == "all" or (scan == "converted" and not plan.in_place)
    return Written(_weights_info(plan, own, files, checked), len(data))


def _record(writer: PackageWriter, plan: BindingPlan, shard: Path, sources: Sequence[str]) -> WeightFile:
    """List a file of a checkpoint that was quantized into the package."""
    from q2export.exporter.weights.bind import scan_shard

    with progress_bar(f"checking {shard.name}", shard.stat().st_size) as advance:
        sha256 = scan_shard(plan, shard, advance)
    return writer.add_quantized(f"{SHARD_FOLDER}/{shard.name}", tuple(sources), sha256)


def _place(
    writer: PackageWriter, plan: BindingPlan, shard: Path, scan: Scan, placement: PlacementMode
) -> WeightFile:
    """Bring a file that is used in place into the package."""
    from q2export.exporter.weights.bind import scan_shard

    sha256 = None
    if scan == "all":
        with progress_bar(f"checking {shard.name}", shard.stat().st_size) as advance:
            sha256 = scan_shard(plan, shard, advance)
    name = f"{SHARD_FOLDER}/{shard.relative_to(plan.checkpoint.folder).as_posix()}"
    return writer.place_weights(shard, name, placement, sha256)


def _convert(writer: PackageWriter, plan: BindingPlan, name: str, scan: Scan) -> WeightFile:
    """Write what cannot be used in place."""
    from q2export.exporter.weights.convert import write_converted

    require_free_space(writer.folder, plan.converted_bytes, "converted weights")
    with (
        progress_bar("converting weights", plan.converted_bytes) as advance,
        writer.open_hashed(name) as sink,
    ):
        write_converted(plan, sink, scan=scan != "none", advance=advance)
    sources = sorted({ref.file.name for binding in plan.converted for ref in binding.sources})
    return WeightFile(name, "converted", tuple(sources), writer.files[name].bytes)


def serialize(graph: Graph) -> bytes:
    """The ONNX file of a graph whose weights are attached, after onnx.checker has passed it.

    Raises:
        ExportError: the checker refuses the graph, which is a fault of the exporter.
    """
    import onnx
    import onnx_ir as ir

    from q2export.exporter.graph.check import check_structure

    proto = ir.to_proto(graph.model)
    check_structure(proto)
    data: bytes = proto.SerializeToString()
    if len(data) >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"the graph alone takes {len(data)} bytes, more than a protobuf file may have")
    return data


def _weights_info(
    plan: BindingPlan, prefill: BindingPlan | None, files: Sequence[WeightFile], value_scan: bool
) -> WeightsInfo:
    more = () if prefill is None else prefill.converted
    return WeightsInfo(
        value_scan=value_scan,
        files=tuple(files),
        in_place_bytes=plan.in_place_bytes,
        in_place_tensors=plan.in_place_tensors,
        converted_bytes=plan.converted_bytes + sum(binding.nbytes for binding in more),
        converted_tensors=len(plan.converted) + len(more),
    )
