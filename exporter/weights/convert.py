"""Writing the weights that cannot be used as they lie on disk, as one safetensors file, in a stream."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from q2export.contracts.progress import Advance, progress_bar, silent
from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import RawBits, TensorRef, read_blocks
from q2export.exporter.checkpoint.pack import pack, unpack
from q2export.exporter.checkpoint.values import check_block, convert_block, count_nonzero
from q2export.exporter.weights.bind import Binding, BindingPlan
from q2export.exporter.weights.sink import BinarySink, Scan, WeightSink
from q2export.exporter.weights.stack import Form
from q2export.strict.json import shown

_BLOCK_BYTES = 8 << 20
_SMALLEST = {"F16": "6e-8", "BF16": "9.2e-41"}
_NOTICED = 0.001
"""Of a normal distribution of width 0.02, one value in a million becomes zero in float16."""
_log = logging.getLogger(__name__)
_ALIGNMENT = 64
"""The data of a file we write start on a cache line; every tensor of a real model keeps that alignment."""


def convert_weights(sink: WeightSink, plan: BindingPlan, name: str, scan: Scan) -> str | None:
    """Write the weights that cannot be used in place.

    Returns:
        ``name``, the path of the new file in the output; None if all are used in place.

    Raises:
        CheckpointError: as in :func:`write_converted`.
        PackageError: no space.
    """
    if not plan.converted:
        return None
    sources = sorted({ref.file.name for binding in plan.converted for ref in binding.sources})
    with (
        progress_bar("converting weights", plan.converted_bytes) as advance,
        sink.open_weights(name, tuple(sources), plan.converted_bytes) as file,
    ):
        write_converted(plan, file, scan=scan != "none", advance=advance)
    return name


def write_converted(plan: BindingPlan, sink: BinarySink, *, scan: bool, advance: Advance = silent) -> None:
    """Stream the converted tensors as one safetensors file.

    Memory stays bounded by a few blocks of 8 MiB: one is read and converted while the one before it is
    written.

    Args:
        plan: what to convert.
        sink: receives the whole file.
        scan: refuse NaN, infinities, what overflows the target type, and tensors most of whose values become
            zero in it; warn of those that lose a thousandth. Without it such values are
            converted as IEEE arithmetic has it, and the caller records that nobody looked.
        advance: told every converted byte written.

    Raises:
        CheckpointError: a file became unreadable, or ``scan`` found a value; names tensor and index.
    """
    sink.write(converted_header(plan))
    with ThreadPoolExecutor(max_workers=1) as ahead:
        blocks = _converted_blocks(plan.converted, scan)
        pending = ahead.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = ahead.submit(next, blocks, None)
            sink.write(block.data.cast("B"))
            advance(block.nbytes)


def _converted_blocks(bindings: tuple[Binding, ...], scan: bool) -> Iterator[RawBits]:
    for binding in bindings:
        if binding.form is Form.UNPADDED_NIBBLES:
            for source in binding.sources:
                yield _without_padding(source, binding.shape[-1])
        else:
            for source in binding.sources:
                if binding.form is Form.VALUES:
                    yield from _blocks(source, binding.dtype, scan)
                else:
                    yield from _flipped_blocks(source, binding.sign_bits)


def _blocks(source: TensorRef, dtype: str, scan: bool, block_bytes: int = _BLOCK_BYTES) -> Iterator[RawBits]:
    """One tensor, checked and converted, block by block."""
    narrows = scan and source.dtype != dtype and dtype != "F32"
    before = after = 0
    for start, raw in read_blocks(source, block_bytes):
        if scan:
            check_block(raw, source.dtype, dtype, source, start)
        block = convert_block(raw, source.dtype, dtype)
        if narrows:
            before, after = before + count_nonzero(raw), after + count_nonzero(block)
        yield block
    if after < before:
        _check_flushed(source, dtype, before, before - after)


def _check_flushed(source: TensorRef, dtype: str, values: int, flushed: int) -> None:
    """Look at how many of a tensor's values, those that were zero apart, are too small for ``dtype``.

    A few are in every model, and their sum is nothing beside the others. Where they are most of the tensor,
    the tensor is lost.

    Raises:
        CheckpointError: more than half of them.
    """
    what = f"{source.file}: tensor {shown(source.name)}: {flushed} of {values} values become zero in {dtype}"
    if 2 * flushed > values:
        raise CheckpointError(
            f"{what}, whose smallest is {_SMALLEST[dtype]}: the tensor would be lost; build for a wider dtype"
        )
    if flushed > _NOTICED * values:
        _log.warning("%s, whose smallest is %s", what, _SMALLEST[dtype])


def _flipped_blocks(source: TensorRef, sign_bits: int) -> Iterator[RawBits]:
    """Bytes of one tensor, with some bits flipped."""
    for _, raw in read_blocks(source, _BLOCK_BYTES):
        yield raw ^ np.uint8(sign_bits)


def _without_padding(source: TensorRef, row: int) -> RawBits:
    """Rows of ``row`` nibbles, each padded to whole bytes, as one row of nibbles without gaps.

    Only for zero points, of which a matrix has few; all of a tensor are in memory at once.
    """
    packed = np.concatenate([raw for _, raw in read_blocks(source)])
    nibbles = unpack(packed.reshape(source.shape), 4, row)
    return pack(nibbles.reshape(-1), 4)


def converted_header(plan: BindingPlan) -> bytes:
    """Length and JSON of the header of the file, padded with spaces as the format allows."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for binding in plan.converted:
        end = offset + binding.nbytes
        entries[binding.name] = {
            "dtype": binding.dtype,
            "shape": [binding.nbytes] if binding.dtype == "U8" else list(binding.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
