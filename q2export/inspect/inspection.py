"""What is in a package, an ONNX file or a checkpoint folder: the facts behind ``q2export inspect``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from q2export.contracts.dtypes import FLOAT_NAMES
from q2export.contracts.memory import CacheShape, MemoryNeed, memory_table
from q2export.contracts.step import PAST
from q2export.errors import Q2ExportError
from q2export.inspect.onnx import OnnxSummary, TensorInfo, summarise_onnx
from q2export.package.manifest import GRAPH_FILE, MANIFEST_NAME, Manifest
from q2export.package.reader import read_package
from q2export.strict.codec import to_plain

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig
    from q2export.exporter.checkpoint.folder import Checkpoint
    from q2export.exporter.checkpoint.published_config import PublishedQuantization

# Rows of the memory table where nothing says how large a batch or context may be.
_BATCH = 8
_CONTEXT = 32768


@dataclass(frozen=True)
class CheckpointSummary:
    """The headers of a checkpoint.

    Attributes:
        config: the parsed ``config.json``, as plain data.
        parameters: values of the model, quantized or not.
        quantized: how many matrices are quantized.
        bytes_by_dtype: of all tensors, ``{"BF16": 988097536}``.
    """

    config: Mapping[str, Any]
    files: int
    tensors: int
    parameters: int
    quantized: int
    bytes_by_dtype: Mapping[str, int]


@dataclass(frozen=True)
class MemorySummary:
    """Bytes of the weights, of the KV cache of one token, and what that makes for batches and contexts."""

    weight_bytes: int
    kv_dtype: str
    kv_cache_bytes_per_token: int
    table: tuple[MemoryNeed, ...]


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found; what does not apply to the kind is None.

    Attributes:
        graph: of a TensorRT package, what the engine was built from. None for a checkpoint.
        memory: None for an ONNX file without a KV cache.
    """

    kind: Literal["package", "onnx", "checkpoint"]
    path: Path
    manifest: Manifest | None
    checkpoint: CheckpointSummary | None
    graph: OnnxSummary | None
    memory: MemorySummary | None

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        parts = {"manifest": self.manifest, "checkpoint": self.checkpoint, "graph": self.graph}
        found = {name: to_plain(part) for name, part in parts.items() if part is not None}
        return {"kind": self.kind, "path": str(self.path), **found, "memory": to_plain(self.memory)}


def inspect(path: Path) -> Inspection:
    """Look into a package, an ONNX file or a checkpoint folder, whichever ``path`` is.

    Raises:
        Q2ExportError: it is none of them, or damaged.
    """
    if os.path.isfile(path):
        return _onnx_file(path)
    if os.path.isfile(path / MANIFEST_NAME):
        return _package(path)
    if os.path.isfile(path / "config.json") or os.path.isfile(path / "adapter_config.json"):
        return _checkpoint(path)
    problem = "a folder with neither manifest.json nor config.json" if os.path.isdir(path) else "nothing"
    raise Q2ExportError(f"{path}: expected a package, an ONNX file or a checkpoint folder, found {problem}")


def _package(path: Path) -> Inspection:
    package = read_package(path)
    manifest = package.manifest
    engine, weights = manifest.engine, manifest.weights
    cache = CacheShape(engine.num_hidden_layers, engine.num_key_value_heads, engine.head_dim, engine.kv_dtype)
    weight_bytes = weights.in_place_bytes + weights.converted_bytes
    memory = _memory(cache, weight_bytes, engine.max_batch, engine.max_capacity)
    graph = summarise_onnx(package.path(engine.file if engine.format == "onnx" else GRAPH_FILE))
    return Inspection("package", path, manifest, None, graph, memory)


def _onnx_file(path: Path) -> Inspection:
    graph = summarise_onnx(path)
    cache = _cache_of(graph.inputs)
    memory = _memory(cache, graph.weight_bytes, _BATCH, _CONTEXT) if cache else None
    return Inspection("onnx", path, None, None, graph, memory)


def _checkpoint(path: Path) -> Inspection:
    from q2export.exporter.checkpoint.config import load_config
    from q2export.exporter.checkpoint.parameters import count_parameters
    from q2export.exporter.checkpoint.published_config import PublishedQuantization
    from q2export.exporter.checkpoint.source import load_source

    config = load_config(path)
    if isinstance(config.quantization, PublishedQuantization):
        checkpoint, dtype, quantized = _published(path, config, config.quantization)
    else:
        source = load_source(path)
        checkpoint, dtype, quantized = source.checkpoint, source.dtype, len(source.packed)
    refs = checkpoint.tensors.values()
    nbytes: Counter[str] = Counter()
    for ref in refs:
        nbytes[ref.dtype] += ref.nbytes
    cache = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, dtype)
    summary = CheckpointSummary(
        config=to_plain(config),
        files=len(checkpoint.files),
        tensors=len(refs),
        parameters=count_parameters(config),
        quantized=quantized,
        bytes_by_dtype=dict(nbytes),
    )
    memory = _memory(cache, nbytes.total(), _BATCH, config.context_length)
    return Inspection("checkpoint", path, None, summary, None, memory)


def _published(
    path: Path, config: ModelConfig, quantization: PublishedQuantization
) -> tuple[Checkpoint, str, int]:
    """The tensors of a GPTQ or AWQ checkpoint, the type of those not quantized, how many matrices are."""
    from q2export.exporter.checkpoint.folder import open_checkpoint
    from q2export.exporter.checkpoint.safetensors_header import QUANTIZED_DTYPES
    from q2export.exporter.checkpoint.source import plain_dtype
    from q2export.exporter.quantization.published.match import match_tensors

    checkpoint = open_checkpoint(path, QUANTIZED_DTYPES)
    tensors = match_tensors(checkpoint, config, quantization)
    return checkpoint, plain_dtype(config, tensors.plain.values()), len(tensors.quantized)


def _memory(cache: CacheShape, weight_bytes: int, max_batch: int, max_context: int) -> MemorySummary:
    table = memory_table(cache, weight_bytes, max_batch=max_batch, max_context=max_context)
    return MemorySummary(weight_bytes, cache.dtype, cache.bytes_per_token, table)


def _cache_of(inputs: tuple[TensorInfo, ...]) -> CacheShape | None:
    """The KV cache of a graph, from its inputs ``past_key.N`` ``[batch, heads, capacity, head_dim]``."""
    past = [tensor for tensor in inputs if tensor.name.startswith(f"{PAST[0].name}.")]
    if not past or past[0].dtype not in FLOAT_NAMES or len(past[0].shape) != 4:
        return None
    _, heads, _, head_dim = past[0].shape
    if not (heads.isdigit() and head_dim.isdigit()):
        return None
    return CacheShape(len(past), int(heads), int(head_dim), past[0].dtype)
