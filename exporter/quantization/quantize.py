"""Quantizing the weights of a checkpoint in a stream: some rows at a time are read, quantized and written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.progress import Advance, silent
from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.packed_layout import plan_layout
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.quantization.padding import pad_intermediate
from q2export.exporter.quantization.quantizer import Quantizer
from q2export.exporter.quantization.round_to_nearest import RoundToNearest
from q2export.exporter.quantization.statistics import WeightStatistics, relative_error
from q2export.exporter.quantization.stream import Stream
from q2export.exporter.quantization.writer import PackedWriter
from q2export.package.placement import require_free_space

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.source import Source

THREADS = 2


@dataclass(frozen=True)
class QuantizeResult:
    """What was done.

    Attributes:
        quantization: how.
        weights: what it did to each weight, in model order.
        source_bytes: of all tensors, before.
        stored_bytes: of the file.
        seconds: it took.
        padded: intermediate sizes that were rounded up with zeros, as in
            :class:`~q2export.exporter.quantization.padding.PaddedModel`.
    """

    quantization: Quantization
    weights: tuple[WeightStatistics, ...]
    source_bytes: int
    stored_bytes: int
    seconds: float
    padded: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def relative_error(self) -> float:
        """Root mean square of the differences over that of the values, of all quantized weights together."""
        return relative_error(self.weights)


def quantize_weights(
    source: Source,
    path: Path,
    quantization: Quantization,
    *,
    quantizer: Quantizer | None = None,
    threads: int = THREADS,
    chunk_values: int | None = None,
    advance: Advance = silent,
) -> QuantizeResult:
    """Write the weights of a checkpoint, quantized, as one safetensors file in the packed form.

    Intermediate sizes that the block size does not divide are rounded up with zeros, which changes nothing
    (:mod:`q2export.exporter.quantization.padding`).

    Args:
        source: the checkpoint, not quantized itself.
        path: of the file to make.
        quantization: what to quantize and how.
        quantizer: None rounds to nearest.
        threads: that read, quantize and write.
        chunk_values: about how many values a thread takes at a time; None is what suits the quantizer.
            Rounding to nearest, neither this nor ``threads`` changes what is written.
        advance: told the bytes of the source that are done, :func:`source_bytes` in all.

    Raises:
        ProfileError: the quantization does not fit the model.
        CheckpointError: the checkpoint is quantized already, a value is not finite, or the file changed since
            its header was read.
        PackageError: there is no space for the file.
    """
    start = time.perf_counter()
    check_not_quantized(source)
    refs = source.checkpoint.tensors
    packed = PackedQuantization.of(quantization)
    padded = pad_intermediate(source.config, packed)
    layout = plan_layout(padded.config, packed, {name: ref.dtype for name, ref in refs.items()})
    require_free_space(path.parent, layout.file_bytes, "quantized weights")
    chosen = quantizer or RoundToNearest()
    with (
        PackedWriter(path, layout) as writer,
        Stream(refs, chosen, writer, threads, advance) as stream,
    ):
        for group in layout.groups:
            stream.quantize(group, chunk_values or chosen.chunk_values)
        stream.copy([layout.tensors[name] for name in layout.plain])
        statistics = stream.finish()
    order = [weight.name for group in layout.groups for weight in group]
    return QuantizeResult(
        quantization,
        tuple(statistics[name] for name in order),
        source_bytes(source),
        layout.file_bytes,
        time.perf_counter() - start,
        padded.sizes,
    )


def check_not_quantized(source: Source) -> None:
    """Refuse what is quantized already: rounding twice only adds to the error.

    Raises:
        CheckpointError: naming the file.
    """
    if source.config.quantization is not None:
        raise CheckpointError(
            f"{source.folder / 'config.json'}: the checkpoint is quantized already (quantization_config); "
            "quantize the model it was made from, or build this one as it is"
        )


def source_bytes(source: Source) -> int:
    """Bytes of all parameters of a checkpoint; without the copy of a tied head some checkpoints hold."""
    return sum(source.checkpoint.tensors[name].nbytes for name in expected_parameters(source.config))
