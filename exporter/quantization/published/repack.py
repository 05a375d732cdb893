"""Repacking a published quantized checkpoint into the packed form, in a stream, without dequantizing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from q2export.contracts.progress import Advance, silent
from q2export.contracts.quantization import PackedQuantization
from q2export.exporter.checkpoint.folder import read_blocks
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.packed_layout import Layout, plan_layout
from q2export.exporter.checkpoint.values import check_block
from q2export.exporter.quantization.folder import WEIGHTS_FILE, write_texts, written_files
from q2export.exporter.quantization.published.rows import WeightRows
from q2export.exporter.quantization.published.source import PublishedSource
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.exporter.quantization.writer import PackedWriter
from q2export.package.output import staged_output
from q2export.package.placement import require_free_space

TILE_BYTES = 4 << 20
"""Of packed codes, read and transposed at once."""


@dataclass(frozen=True)
class RepackResult:
    """What was done.

    Attributes:
        quantization: of the new checkpoint.
        weights: how many are quantized.
        source_bytes: of all tensors, before.
        stored_bytes: of the file.
        seconds: it took.
    """

    quantization: PackedQuantization
    weights: int
    source_bytes: int
    stored_bytes: int
    seconds: float


def repack_checkpoint(
    source: PublishedSource, output: Path, *, overwrite: bool = False, advance: Advance = silent
) -> RepackResult:
    """Write a checkpoint folder in the packed form, all of it or nothing.

    Args:
        source: the checkpoint.
        output: folder to make; missing parents are made, too.
        overwrite: replace ``output`` if it is a checkpoint in the packed form with nothing else in it.
        advance: as in :func:`repack_weights`.

    Raises:
        CheckpointError: as in :func:`repack_weights`.
        PackageError: the output is in the way, cannot be written, or does not fit.
    """
    with staged_output(output, overwrite, written_files) as staging:
        result = repack_weights(source, staging.folder / WEIGHTS_FILE, advance=advance)
        write_texts(source.checkpoint.folder, staging.folder, source.quantization)
    return result


def repack_weights(
    source: PublishedSource, path: Path, *, tile_bytes: int = TILE_BYTES, advance: Advance = silent
) -> RepackResult:
    """Write the weights of a published checkpoint as one safetensors file in the packed form.

    Memory is bounded by two tiles and the scales and zero points of one weight (under act-order also by the
    codes of one gate or up). One tile is read while the one before it is written.

    Args:
        source: the checkpoint.
        path: of the file to make.
        tile_bytes: codes read at once; does not change what is written.
        advance: told the bytes of the source that are done, ``source.nbytes`` in all.

    Raises:
        CheckpointError: a scale or another value is not finite, or a file changed since its header was read.
        PackageError: there is no space for the file.
    """
    start = time.perf_counter()
    layout = plan_layout(
        source.config, source.quantization, {name: ref.dtype for name, ref in source.tensors.plain.items()}
    )
    require_free_space(path.parent, layout.file_bytes, "repacked weights")
    done = 0
    with (
        PackedWriter(path, layout) as writer,
        TensorFiles(source.checkpoint.files) as files,
        ThreadPoolExecutor(max_workers=1) as ahead,
    ):
        pieces = _pieces(source, layout, files, tile_bytes)
        pending = ahead.submit(next, pieces, None)
        while (piece := pending.result()) is not None:
            pending = ahead.submit(next, pieces, None)
            piece.write(writer)
            done += piece.nbytes
            advance(piece.nbytes)
    advance(source.nbytes - done)  # what was only read to be checked
    return RepackResult(
        source.quantization,
        len(source.tensors.quantized),
        source.nbytes,
        layout.file_bytes,
        time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Piece:
    """Something to write, made of ``nbytes`` of the source."""

    nbytes: int
    write: Callable[[PackedWriter], None]


def _pieces(source: PublishedSource, layout: Layout, files: TensorFiles, tile_bytes: int) -> Iterator[_Piece]:
    for group in layout.groups:
        for _, sharing in groupby(group, key=lambda weight: weight.tensor):
            yield from _rows(source, files, tuple(sharing), tile_bytes)
        yield from _input_orders(source, group)
    for name in layout.plain:
        yield from _copied(source, name, tile_bytes)


def _rows(
    source: PublishedSource, files: TensorFiles, weights: Sequence[PackedWeight], tile_bytes: int
) -> Iterator[_Piece]:
    """The rows of all weights that one tensor holds."""
    published = [source.tensors.quantized[weight.name] for weight in weights]
    opened = [WeightRows.open(source, files, one, tile_bytes) for one in published]
    row_bytes = sum(one.row_bytes for one in opened)
    nbytes = sum(one.parameter_bytes for one in opened)
    for first, count in opened[0].tiles(tile_bytes):
        parts = [one.read(files, first, count) for one in opened]
        yield _Piece(
            nbytes + count * row_bytes,
            partial(PackedWriter.write_rows, weights=weights, first_row=first, parts=parts),
        )
        nbytes = 0


def _input_orders(source: PublishedSource, weights: Sequence[PackedWeight]) -> Iterator[_Piece]:
    for weight in weights:
        if weight.input_order is not None and weight.holds_input_order:
            order = source.groups[weight.name].order
            if order is None:
                order = np.arange(weight.shape[1], dtype=np.int32)
            data = order.astype("<i4", copy=False)
            yield _Piece(
                0, partial(PackedWriter.write_plain, name=weight.input_order, first_byte=0, data=data)
            )


def _copied(source: PublishedSource, name: str, tile_bytes: int) -> Iterator[_Piece]:
    """A tensor in floating point, as it is, checked to be finite."""
    ref = source.tensors.plain[name]
    for first, raw in read_blocks(ref, tile_bytes):
        check_block(raw, ref.dtype, ref.dtype, ref, first)
        yield _Piece(
            raw.nbytes,
            partial(PackedWriter.write_plain, name=name, first_byte=first * raw.itemsize, data=raw),
        )
