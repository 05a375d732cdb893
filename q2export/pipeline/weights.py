"""Where the weights of a graph come from: a checkpoint, as it is or quantized or repacked first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.progress import progress_bar
from q2export.contracts.quantization import Quantization
from q2export.errors import ProfileError

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig
    from q2export.exporter.checkpoint.folder import Checkpoint, TensorRef
    from q2export.exporter.checkpoint.packed import PackedQuantization, PackedWeight
    from q2export.exporter.checkpoint.packed_layout import Layout
    from q2export.exporter.checkpoint.source import Source
    from q2export.exporter.quantization.published.source import PublishedSource
    from q2export.exporter.weights.sizes import PlannedBytes


class WeightSource(ABC):
    """A checkpoint, and what its weights have to become before a graph can read them."""

    @property
    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """Where the weights are."""

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return self.checkpoint.folder

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the checkpoint's files of weights."""
        return tuple(file.name for file in self.checkpoint.files)

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Of the model, as the graph will have it."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """Type of the weights that are not quantized: ``float32``, ``float16`` or ``bfloat16``."""

    @property
    @abstractmethod
    def packed(self) -> PackedQuantization | None:
        """What the weights will be; None if they are not quantized."""

    @property
    @abstractmethod
    def quantized_weights(self) -> Mapping[str, PackedWeight]:
        """The weights that are, or will be, quantized, by Hugging Face name."""

    @abstractmethod
    def planned_bytes(self, target: str, dtype: str) -> PlannedBytes:
        """What the weights of a graph of ``target`` and ``dtype`` will take."""

    @abstractmethod
    def prepare(self, folder: Path) -> Source:
        """The checkpoint a graph can read; if it has to be made first, it is made in ``folder``.

        Raises:
            Q2ExportError: what quantizing or repacking raises.
        """


class _Written(WeightSource):
    """A checkpoint whose weights are written anew, in the packed form; its plan says all there is to say."""

    @property
    @abstractmethod
    def _copied(self) -> Mapping[str, TensorRef]:
        """Tensors of the checkpoint whose types decide those of what is not quantized."""

    @cached_property
    def _layout(self) -> Layout:
        from q2export.exporter.checkpoint.packed_layout import plan_layout

        assert self.packed is not None  # what is written anew is quantized
        return plan_layout(self.config, self.packed, {name: ref.dtype for name, ref in self._copied.items()})

    @property
    def quantized_weights(self) -> Mapping[str, PackedWeight]:
        """See :class:`WeightSource`."""
        return {weight.name: weight for group in self._layout.groups for weight in group}

    def planned_bytes(self, target: str, dtype: str) -> PlannedBytes:
        """See :class:`WeightSource`."""
        from q2export.exporter.weights.sizes import planned_bytes

        return planned_bytes(self.config, self._layout.tensors, self.quantized_weights, target, dtype)


@dataclass(frozen=True)
class AsItIs(WeightSource):
    """A checkpoint that is used as it is: not quantized, or in the packed form."""

    source: Source

    @property
    def checkpoint(self) -> Checkpoint:
        """See :class:`WeightSource`."""
        return self.source.checkpoint

    @property
    def config(self) -> ModelConfig:
        """See :class:`WeightSource`."""
        return self.source.config

    @property
    def dtype(self) -> str:
        """See :class:`WeightSource`."""
        return self.source.dtype

    @property
    def packed(self) -> PackedQuantization | None:
        """See :class:`WeightSource`."""
        return self.source.quantization

    @property
    def quantized_weights(self) -> Mapping[str, PackedWeight]:
        """See :class:`WeightSource`."""
        return self.source.packed

    def planned_bytes(self, target: str, dtype: str) -> PlannedBytes:
        """See :class:`WeightSource`."""
        from q2export.exporter.weights.sizes import planned_bytes

        source = self.source
        return planned_bytes(source.config, source.checkpoint.tensors, source.packed, target, dtype)

    def prepare(self, folder: Path) -> Source:
        """See :class:`WeightSource`."""
        return self.source


@dataclass(frozen=True)
class ToQuantize(_Written):
    """A checkpoint that is quantized into the package.

    Raises:
        ProfileError: the quantization does not fit the model, or needs more than the model.
    """

    source: Source
    quantization: Quantization

    def __post_init__(self) -> None:
        if self.quantization.method != "round-to-nearest":
            raise ProfileError(
                f"quantization.method {self.quantization.method!r} needs a text to calibrate with: quantize "
                "the checkpoint first (q2export quantize --calibration FILE) and build from the result"
            )
        self._layout  # noqa: B018 - refuses what does not fit before anything is done

    @property
    def checkpoint(self) -> Checkpoint:
        """See :class:`WeightSource`."""
        return self.source.checkpoint

    @cached_property
    def config(self) -> ModelConfig:
        """See :class:`WeightSource`."""
        from q2export.exporter.quantization.padding import pad_intermediate

        return pad_intermediate(self.source.config, self.packed).config

    @property
    def dtype(self) -> str:
        """See :class:`WeightSource`."""
        return self.source.dtype

    @property
    def packed(self) -> PackedQuantization:
        """See :class:`WeightSource`."""
        from q2export.exporter.checkpoint.packed import PackedQuantization

        return PackedQuantization.of(self.quantization)

    @property
    def _copied(self) -> Mapping[str, TensorRef]:
        return self.source.checkpoint.tensors

    def prepare(self, folder: Path) -> Source:
        """See :class:`WeightSource`."""
        from q2export.exporter.checkpoint.source import load_source
        from q2export.exporter.quantization.folder import WEIGHTS_FILE, write_config
        from q2export.exporter.quantization.quantize import quantize_weights, source_bytes

        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar("quantizing weights", source_bytes(self.source)) as advance:
            done = quantize_weights(self.source, folder / WEIGHTS_FILE, self.quantization, advance=advance)
        sizes = {name: after for name, (_, after) in done.padded.items()}
        write_config(self.folder, folder, self.packed, sizes)
        return load_source(folder)


@dataclass(frozen=True)
class ToRepack(_Written):
    """A published quantized checkpoint (GPTQ, AWQ) that is repacked into the package, not dequantized."""

    source: PublishedSource

    @property
    def checkpoint(self) -> Checkpoint:
        """See :class:`WeightSource`."""
        return self.source.checkpoint

    @property
    def config(self) -> ModelConfig:
        """See :class:`WeightSource`."""
        return self.source.config

    @property
    def dtype(self) -> str:
        """See :class:`WeightSource`."""
        from q2export.exporter.checkpoint.source import plain_dtype

        return plain_dtype(self.config, self.source.tensors.plain.values())

    @property
    def packed(self) -> PackedQuantization:
        """See :class:`WeightSource`."""
        return self.source.packed

    @property
    def _copied(self) -> Mapping[str, TensorRef]:
        return self.source.tensors.plain

    def prepare(self, folder: Path) -> Source:
        """See :class:`WeightSource`."""
        from q2export.exporter.checkpoint.source import load_source
        from q2export.exporter.quantization.folder import WEIGHTS_FILE, write_config
        from q2export.exporter.quantization.published.repack import repack_weights

        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar("repacking weights", self.source.nbytes) as advance:
            repack_weights(self.source, folder / WEIGHTS_FILE, advance=advance)
        write_config(self.folder, folder, self.packed)
        return load_source(folder)


def find_weights(folder: Path, asked: Quantization, explicit: Collection[str] = ()) -> WeightSource:
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
    from q2export.exporter.checkpoint.config import load_config
    from q2export.exporter.checkpoint.published_config import PublishedQuantization
    from q2export.exporter.checkpoint.source import load_source
    from q2export.exporter.quantization.published.source import load_published

    if isinstance(load_config(folder).quantization, PublishedQuantization):
        found: WeightSource = ToRepack(load_published(folder))
    else:
        source = load_source(folder)
        if source.quantization is None and asked.enabled:
            return ToQuantize(source, asked)
        found = AsItIs(source)
    if found.packed is not None:
        _check_agreement(folder, found.packed, asked, explicit)
    return found


def _check_agreement(
    folder: Path, packed: PackedQuantization, asked: Quantization, explicit: Collection[str]
) -> None:
    """Refuse a request that a checkpoint quantized already cannot fulfil."""
    found = {
        "weights": f"int{packed.scheme.bits}",
        "block_size": packed.scheme.block_size,
        "symmetric": packed.scheme.symmetric,
        "method": packed.method,
        "embedding": packed.embedding,
        "keep": packed.keep,
    }
    for name, value in found.items():
        wanted = getattr(asked, name)
        if wanted != value and (name in explicit or (name == "weights" and asked.enabled)):
            raise ProfileError(
                f"quantization.{name} is {wanted!r}, but {folder} is quantized already, with {value!r}; "
                "leave it out, or take the unquantized checkpoint"
            )
