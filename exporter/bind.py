"""Binding initializers to data: in place in the checkpoint where the types agree, converted where not.

Three steps, so that nothing is written before everything is known to fit: :func:`plan_binding` decides from
headers alone, :func:`write_converted` streams what must change into one safetensors file, :func:`attach`
points the graph at the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from q2export.errors import CheckpointError, ExportError
from q2export.exporter.checkpoint import Checkpoint, RawBits, TensorRef, read_blocks
from q2export.exporter.safetensors_header import ITEMSIZE
from q2export.exporter.stack import META_KEY, Stack
from q2export.exporter.values import check_block, convert_block
from q2export.progress import Advance, silent

SAFETENSORS_TYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}
_BLOCK_BYTES = 8 << 20
_ALIGNMENT = 64
"""The data of a file we write start on a cache line; every tensor of a real model keeps that alignment."""


class BinarySink(Protocol):
    """Where converted weights are written."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append C-contiguous data."""


@dataclass(frozen=True)
class Binding:
    """Where the data of one initializer come from.

    Attributes:
        name: of the initializer.
        sources: the tensors on disk; more than one for a :class:`~q2export.exporter.stack.Stack`.
        shape: of the initializer.
        dtype: what the graph wants: F32, F16 or BF16.
        interleaved: see :class:`~q2export.exporter.stack.Stack`.
    """

    name: str
    sources: tuple[TensorRef, ...]
    shape: tuple[int, ...]
    dtype: str
    interleaved: bool = False

    @property
    def source(self) -> TensorRef:
        """The tensor of a binding that has one."""
        return self.sources[0]

    @property
    def in_place(self) -> bool:
        """Whether the graph takes the tensor as it lies on disk."""
        return len(self.sources) == 1 and self.source.dtype == self.dtype

    @property
    def nbytes(self) -> int:
        """Size in the graph's type."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class BindingPlan:
    """The bindings of a graph, in graph order."""

    checkpoint: Checkpoint
    bindings: tuple[Binding, ...]

    @property
    def in_place(self) -> tuple[Binding, ...]:
        """Those read from the checkpoint's own files."""
        return tuple(binding for binding in self.bindings if binding.in_place)

    @property
    def converted(self) -> tuple[Binding, ...]:
        """Those that have to be converted."""
        return tuple(binding for binding in self.bindings if not binding.in_place)

    @property
    def shards(self) -> tuple[Path, ...]:
        """Checkpoint files read in place, in the checkpoint's order."""
        used = {binding.source.file for binding in self.in_place}
        return tuple(file for file in self.checkpoint.files if file in used)

    @property
    def in_place_bytes(self) -> int:
        """Bytes of weights read in place."""
        return sum(binding.nbytes for binding in self.in_place)

    @property
    def converted_bytes(self) -> int:
        """Bytes of weights after conversion."""
        return sum(binding.nbytes for binding in self.converted)


def plan_binding(model: ir.Model, checkpoint: Checkpoint, parameters: Collection[str]) -> BindingPlan:
    """Find the tensor of every initializer that has no data yet.

    Args:
        model: the lowered graph.
        checkpoint: where the tensors are.
        parameters: names of all parameters of the model; the graph must read every one of them.

    Raises:
        ExportError: an initializer has no tensor of its name and shape, or a parameter has no initializer.
            Both would be a fault of the exporter: ``check_parameters`` has already compared the checkpoint
            with the model.
    """
    bindings = []
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        bindings.append(_bind(name, value, checkpoint))
    unread = sorted(set(parameters) - {ref.name for binding in bindings for ref in binding.sources})
    if unread:
        raise ExportError(
            f"the graph does not read {len(unread)} parameter(s) of the model, first {unread[0]!r}"
        )
    return BindingPlan(checkpoint, tuple(bindings))


def _bind(name: str, value: ir.Value, checkpoint: Checkpoint) -> Binding:
    stack = value.meta.get(META_KEY, Stack((name,)))
    sources = tuple(checkpoint.tensors[tensor] for tensor in stack.tensors if tensor in checkpoint.tensors)
    shape = tuple(int(size) for size in value.shape.numpy()) if value.shape is not None else ()
    complete = len(sources) == len(stack.tensors)
    if not complete or value.dtype not in SAFETENSORS_TYPES or not _same_elements(sources, shape):
        found = ", ".join(f"{ref.dtype} {ref.shape}" for ref in sources[:2]) or "no such tensor"
        raise ExportError(
            f"initializer {name!r} ({value.dtype} {shape}) has no tensor to read: found {found}"
        )
    return Binding(name, sources, shape, SAFETENSORS_TYPES[value.dtype], stack.interleaved)


def _same_elements(sources: tuple[TensorRef, ...], shape: tuple[int, ...]) -> bool:
    """Whether the tensors fill the shape: one by one exactly, several by their common shape and number."""
    if len(sources) == 1:
        return sources[0].shape == shape
    same = len({ref.shape for ref in sources}) == 1
    return same and sum(math.prod(ref.shape) for ref in sources) == math.prod(shape)


def write_converted(plan: BindingPlan, sink: BinarySink, *, scan: bool, advance: Advance = silent) -> None:
    """Stream the converted tensors as one safetensors file.

    Memory stays bounded by a few blocks of 8 MiB: one is read and converted while the one before it is
    written.

    Args:
        plan: what to convert.
        sink: receives the whole file.
        scan: refuse NaN, infinities and what overflows the target type. Without it such values are
            converted as IEEE arithmetic has it, and the caller records that nobody looked.
        advance: told every converted byte written.

    Raises:
        CheckpointError: a file became unreadable, or ``scan`` found a value; names tensor and index.
    """
    sink.write(_header(plan.converted))
    with ThreadPoolExecutor(max_workers=1) as ahead:
        blocks = _converted_blocks(plan.converted, scan)
        pending = ahead.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = ahead.submit(next, blocks, None)
            sink.write(block.data.cast("B"))
            advance(block.nbytes)


def _converted_blocks(bindings: tuple[Binding, ...], scan: bool) -> Iterator[RawBits]:
    for binding in bindings:
        if binding.interleaved:
            for first, second in zip(binding.sources[0::2], binding.sources[1::2], strict=True):
                yield from _interleaved_blocks(first, second, binding.dtype, scan)
        else:
            for source in binding.sources:
                yield from _blocks(source, binding.dtype, scan)


def _blocks(source: TensorRef, dtype: str, scan: bool, block_bytes: int = _BLOCK_BYTES) -> Iterator[RawBits]:
    """One tensor, checked and converted, block by block."""
    for start, raw in read_blocks(source, block_bytes):
        if scan:
            check_block(raw, source.dtype, dtype, source, start)
        yield convert_block(raw, source.dtype, dtype)


def _interleaved_blocks(first: TensorRef, second: TensorRef, dtype: str, scan: bool) -> Iterator[RawBits]:
    """Two matrices of one shape and type with their rows alternating."""
    columns = first.shape[1]
    row_bytes = columns * max(ITEMSIZE[first.dtype], ITEMSIZE[second.dtype])
    rows = max(1, _BLOCK_BYTES // 2 // row_bytes)
    sides = [_blocks(ref, dtype, scan, rows * columns * ITEMSIZE[ref.dtype]) for ref in (first, second)]
    for one, other in zip(*sides, strict=True):
        yield np.stack((one.reshape(-1, columns), other.reshape(-1, columns)), axis=1).reshape(-1)


def _header(bindings: tuple[Binding, ...]) -> bytes:
    """The length and JSON of a safetensors header, padded with spaces as the format allows."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for binding in bindings:
        end = offset + binding.nbytes
        entries[binding.name] = {
            "dtype": binding.dtype,
            "shape": list(binding.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def converted_header_bytes(plan: BindingPlan) -> int:
    """Length of the header :func:`write_converted` writes before the data."""
    return len(_header(plan.converted))


def scan_shard(plan: BindingPlan, shard: Path, advance: Advance = silent) -> str:
    """Read one shard once: check its in-place tensors for NaN and infinities, and hash the whole file.

    Returns:
        SHA-256 of the file in hexadecimal.

    Raises:
        CheckpointError: a value is not finite, or the file changed since its header was read.
    """
    digest = hashlib.sha256()
    refs = sorted(
        (ref for ref in plan.checkpoint.tensors.values() if ref.file == shard), key=lambda ref: ref.offset
    )
    in_place = {binding.name for binding in plan.in_place}
    start = refs[0].offset
    with shard.open("rb", buffering=0) as file:
        header = file.read(start)
    if len(header) != start:
        raise CheckpointError(f"{shard}: the file changed while it was read")
    digest.update(header)
    advance(start)
    with ThreadPoolExecutor(max_workers=1) as hasher:
        done = hasher.submit(lambda: None)
        for ref in refs:
            for first, raw in read_blocks(ref):
                previous, done = done, hasher.submit(digest.update, raw.data.cast("B"))
                if ref.name in in_place:
                    check_block(raw, ref.dtype, ref.dtype, ref, first)
                previous.result()
                advance(raw.nbytes)
        done.result()
    return digest.hexdigest()


def attach(model: ir.Model, plan: BindingPlan, locations: Mapping[Path, str], converted: str | None) -> None:
    """Point every initializer at its data, as ONNX external data.

    Args:
        model: the graph that was planned for.
        plan: its bindings.
        locations: checkpoint file -> its path relative to the folder of the ONNX file.
        converted: path of the converted weights, likewise; None if nothing was converted.
    """
    offset = converted_header_bytes(plan) if converted is not None else 0
    for binding in plan.bindings:
        value = model.graph.initializers[binding.name]
        if binding.in_place:
            location, where = locations[binding.source.file], binding.source.offset
        elif converted is not None:
            location, where = converted, offset
            offset += binding.nbytes
        else:
            raise ExportError(f"initializer {binding.name!r} was to be converted, but nothing was written")
        value.const_value = ir.ExternalTensor(
            location,
            where,
            binding.nbytes,
            value.dtype or ir.DataType.FLOAT,
            shape=ir.Shape(binding.shape),
            name=binding.name,
        )
