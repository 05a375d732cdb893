"""Where the weights of a graph come from: a checkpoint, as it is or quantized or repacked first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from q2export.contracts.progress import progress_bar
from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import ProfileError
from q2export.exporter.checkpoint.config import ModelConfig, load_config
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.packed_layout import plan_layout
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.checkpoint.source import Source, load_source, plain_dtype
from q2export.exporter.quantization.folder import WEIGHTS_FILE, write_config
from q2export.exporter.quantization.padding import pad_intermediate
from q2export.exporter.quantization.published.repack import repack_weights
from q2export.exporter.quantization.published.source import PublishedSource, load_published
from q2export.exporter.quantization.quantize import quantize_weights, source_bytes


class Tensor(Protocol):
    """What the header of a file says about a tensor."""

    @property
    def dtype(self) -> str:
        """F32, F16 or BF16."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def nbytes(self) -> int:
        """Its size."""


@dataclass(frozen=True)
class WeightPlan:
    """A checkpoint, and what its weights become before a graph reads them; known from headers alone.

    Attributes:
        source: the checkpoint as it lies on disk.
        config: of the model, as the graph will have it.
        dtype: of the weights that are not quantized: ``float32``, ``float16`` or ``bfloat16``.
        tensors: that the graph will find, by name; at least those of weights that are not quantized.
        quantization: of the weights, as the graph will find them; None if they are not quantized.
        packed: the quantized weights, by Hugging Face name.
        quantize: how the source is quantized first; None if it is not.
    """

    source: Source | PublishedSource
    config: ModelConfig
    dtype: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    quantization: PackedQuantization | None = None
    packed: Mapping[str, PackedWeight] = field(default_factory=dict, repr=False)
    quantize: Quantization | None = None

    @property
    def folder(self) -> Path:
        """Of the source."""
        return self.source.checkpoint.folder

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the source's files of weights."""
        return tuple(file.name for file in self.source.checkpoint.files)

    @property
    def original(self) -> Source | None:
        """The checkpoint that is quantized first; None if none is."""
        return self.source if isinstance(self.source, Source) and self.quantize is not None else None

    @property
    def is_written(self) -> bool:
        """Whether the weights are written anew, in the packed form, before a graph reads them."""
        return self.quantize is not None or isinstance(self.source, PublishedSource)

    def prepare(self, folder: Path) -> Source:
        """The checkpoint a graph can read: the source, or one that is made of it in ``folder``.

        Raises:
            Q2ExportError: what quantizing or repacking raises.
        """
        source, sizes = self.source, None
        if isinstance(source, Source) and self.quantize is None:
            return source
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(source, PublishedSource):
            with progress_bar("repacking weights", source.nbytes) as advance:
                repack_weights(source, folder / WEIGHTS_FILE, advance=advance)
        elif self.quantize is not None:
            with progress_bar("quantizing weights", source_bytes(source)) as advance:
                done = quantize_weights(source, folder / WEIGHTS_FILE, self.quantize, advance=advance)
            sizes = done.padded
        assert self.quantization is not None  # what is written anew is quantized
        write_config(self.folder, folder, self.quantization, sizes)
        return load_source(folder)


def plan_weights(folder: Path, asked: Quantization, explicit: Collection[str] = ()) -> WeightPlan:
    """Look at a checkpoint, and decide what has to be done to its weights.

    Args:
        folder: the checkpoint.
        asked: how an unquantized checkpoint is to be quantized. One that is quantized already stays as it is:
            ``weights`` must be ``none`` or agree with it.
        explicit: fields of ``asked`` that somebody gave for this checkpoint; they must all agree with it.

    Raises:
        ConfigError, CheckpointError: the checkpoint is not in order.
        ProfileError: what is asked for does not fit the model, or the checkpoint is quantized otherwise.
    """
    if isinstance(load_config(folder).quantization, PublishedQuantization):
        plan = repacked(load_published(folder))
    else:
        source = load_source(folder)
        if source.quantization is None and asked.enabled:
            return quantized(source, asked)
        plan = as_it_is(source)
    if plan.quantization is not None:
        _check_agreement(folder, plan.quantization, asked, explicit)
    return plan


def as_it_is(source: Source) -> WeightPlan:
    """Use a checkpoint as it is: not quantized, or in the packed form."""
    tensors = source.checkpoint.tensors
    return WeightPlan(source, source.config, source.dtype, tensors, source.quantization, source.packed)


def quantized(source: Source, quantization: Quantization) -> WeightPlan:
    """Quantize a checkpoint first.

    Raises:
        ProfileError: the quantization does not fit the model, or needs more than the model.
    """
    if quantization.method != "round-to-nearest":
        raise ProfileError(
            f"quantization.method {quantization.method!r} needs a text to calibrate with: quantize "
            "the checkpoint first (q2export quantize --calibration FILE) and build from the result"
        )
    packed = PackedQuantization.of(quantization)
    config = pad_intermediate(source.config, packed).config
    return _written(source, config, packed, source.checkpoint.tensors, source.dtype, quantization)


def repacked(source: PublishedSource) -> WeightPlan:
    """Repack a published quantized checkpoint (GPTQ, AWQ) first, without dequantizing it."""
    plain = source.tensors.plain
    dtype = plain_dtype(source.config, plain.values())
    return _written(source, source.config, source.quantization, plain, dtype)


def _written(
    source: Source | PublishedSource,
    config: ModelConfig,
    quantization: PackedQuantization,
    kept: Mapping[str, Tensor],
    dtype: str,
    quantize: Quantization | None = None,
) -> WeightPlan:
    """Weights that are written anew; what is not quantized keeps the type it has among ``kept``."""
    layout = plan_layout(config, quantization, {name: tensor.dtype for name, tensor in kept.items()})
    packed = {weight.name: weight for group in layout.groups for weight in group}
    return WeightPlan(source, config, dtype, layout.tensors, quantization, packed, quantize)


def _check_agreement(
    folder: Path, found: PackedQuantization, asked: Quantization, explicit: Collection[str]
) -> None:
    """Refuse a request that a checkpoint quantized already cannot fulfil."""
    values = {"weights": f"int{found.bits}", **vars(found)}
    for name in ("weights", "block_size", "symmetric", "method", "embedding", "keep"):
        value = values[name]
        wanted = getattr(asked, name)
        if wanted != value and (name in explicit or (name == "weights" and asked.enabled)):
            raise ProfileError(
                f"quantization.{name} is {wanted!r}, but {folder} is quantized already, with {value!r}; "
                "leave it out, or take the unquantized checkpoint"
            )
