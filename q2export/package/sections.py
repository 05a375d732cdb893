"""The sections of ``manifest.json``: plain records that check themselves."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from q2export.contracts.dtypes import FloatDtype
from q2export.contracts.limits import MAX_BATCH, MAX_LAYERS, MAX_SIZE, MAX_TOKENS
from q2export.contracts.quantization import Activations, PackedQuantization
from q2export.contracts.step import StepSignature
from q2export.errors import PackageError
from q2export.package.hashing import FileDigest
from q2export.strict.json import shown

ALWAYS_HASHED_BYTES = 64 << 20
"""Files up to this size are hashed whole whenever a package is opened."""
GRAPH_SUFFIX = ".onnx"

Placement = Literal["converted", "quantized", "reflink", "hardlink", "copy"]
Measured = Literal["engine", "pytorch"]
LARGEST = {
    "num_hidden_layers": MAX_LAYERS,
    "num_key_value_heads": MAX_SIZE,
    "head_dim": MAX_SIZE,
    "vocab_size": MAX_SIZE,
    "max_batch": MAX_BATCH,
    "max_capacity": MAX_TOKENS,
    "prefill_chunk": MAX_TOKENS,
}
"""Of the sizes of an engine: those that checkpoints and profiles are held to."""
_HEX = re.compile(r"[0-9a-f]{64}")


def _check_not_negative(owner: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(owner, name) < 1 << 63:
            raise PackageError(f"{name} must not be negative, found {getattr(owner, name)}")


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(owner, name) < 1 << 63:
            raise PackageError(f"{name} must be at least 1, found {getattr(owner, name)}")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and digests of one file of the package (see :mod:`q2export.package.hashing`).

    ``sha256`` is None where the data were not read while building; ``unhashed_reason`` then says why.
    """

    bytes: int
    sha256: str | None
    fingerprint: str
    unhashed_reason: str | None = None

    @classmethod
    def of(cls, digest: FileDigest) -> FileRecord:
        """The record of a file whose data were read."""
        return cls(digest.bytes, digest.sha256, digest.fingerprint)

    def __post_init__(self) -> None:
        _check_not_negative(self, "bytes")
        for name, digest in (("sha256", self.sha256), ("fingerprint", self.fingerprint)):
            if digest is not None and not _HEX.fullmatch(digest):
                raise PackageError(f"{name} must be 64 lower-case hexadecimal digits, found {shown(digest)}")
        if (self.sha256 is None) != (self.unhashed_reason is not None):
            raise PackageError("exactly one of sha256 and unhashed_reason must be given")
        if self.sha256 is None and self.bytes <= ALWAYS_HASHED_BYTES:
            raise PackageError(
                f"sha256 is required for a file of {self.bytes} bytes (up to {ALWAYS_HASHED_BYTES})"
            )


@dataclass(frozen=True)
class ToolInfo:
    """The program that wrote the package."""

    name: str
    version: str


@dataclass(frozen=True)
class ModelInfo:
    """The checkpoint: hub id or folder name, revision, and the *name* (no path) of the folder it was read
    from."""

    id: str
    revision: str | None
    model_type: str
    parameters: int
    source_folder: str

    def __post_init__(self) -> None:
        _check_not_negative(self, "parameters")


@dataclass(frozen=True)
class TensorRTInfo:
    """What made a TensorRT engine; it must match what loads it.

    Attributes:
        builder: the library: the full TensorRT or TensorRT-RTX. builder_version: ``"1.7.1.116"``.
        compute_capability: of the GPUs the engine is for, ``"8.0"``.
        plugin_contract_version: version of the custom ops' inputs, outputs and attributes it was built with.
        version_compatible, weight_streaming: as in the profile.
    """

    builder: Literal["tensorrt", "rtx"]
    builder_version: str
    compute_capability: str
    plugin_contract_version: int
    version_compatible: bool
    weight_streaming: bool

    def __post_init__(self) -> None:
        _check_positive(self, "plugin_contract_version")


@dataclass(frozen=True)
class EngineInfo:
    """What a backend must know to load the engine and allocate its KV cache.

    Attributes:
        format: ``onnx``: a graph with external weights; ``tensorrt``: a serialized TensorRT engine.
        file: the engine, a path of the package. dtype: of activations. kv_dtype: of the KV cache.
        max_batch: sequences per step. max_capacity: tokens per sequence the cache may hold.
        prefill_chunk: longest ``input_ids`` of one step, in tokens.
        context_length: tokens the model was made for (``max_position_embeddings``, after YaRN).
        tensorrt: of a TensorRT engine, None for others.
    """

    format: Literal["onnx", "tensorrt"]
    file: str
    dtype: FloatDtype
    kv_dtype: FloatDtype
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_batch: int
    max_capacity: int
    prefill_chunk: int
    context_length: int
    tensorrt: TensorRTInfo | None = None

    def __post_init__(self) -> None:
        if self.format == "onnx" and ("/" in self.file or not self.file.endswith(GRAPH_SUFFIX)):
            raise PackageError(f"a graph must be a file *{GRAPH_SUFFIX} beside it, found {shown(self.file)}")
        if (self.format == "tensorrt") != (self.tensorrt is not None):
            problem = "needs a" if self.tensorrt is None else "has no"
            raise PackageError(f"format {self.format!r} {problem} section 'tensorrt'")
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise PackageError(f"{name} must be from 1 to {largest}, found {getattr(self, name)}")
        _check_positive(self, "context_length")

    @property
    def signature(self) -> StepSignature:
        """The inputs and outputs of its graph."""
        return StepSignature(
            self.num_hidden_layers,
            self.num_key_value_heads,
            self.head_dim,
            self.vocab_size,
            self.kv_dtype,
        )


@dataclass(frozen=True)
class WeightFile:
    """One file of weights: how it got into the package, and the checkpoint files its data come from."""

    path: str
    placement: Placement
    sources: tuple[str, ...]
    bytes: int

    def __post_init__(self) -> None:
        _check_not_negative(self, "bytes")


@dataclass(frozen=True)
class WeightsInfo:
    """Provenance of the weights; bytes and tensors are counted as the engine refers to them.

    Attributes:
        value_scan: whether every value was checked for NaN, infinity and overflow.
        in_place_bytes: read by the engine from the checkpoint's own bytes, ``converted_bytes``: from new
            ones.
    """

    value_scan: bool
    files: tuple[WeightFile, ...]
    in_place_bytes: int
    in_place_tensors: int
    converted_bytes: int
    converted_tensors: int

    def __post_init__(self) -> None:
        _check_not_negative(
            self, "in_place_bytes", "in_place_tensors", "converted_bytes", "converted_tensors"
        )


@dataclass(frozen=True, kw_only=True)
class QuantizationInfo(PackedQuantization):
    """How the weights are quantized, and how the engine multiplies them.

    Attributes:
        format_version: of the form they are stored in.
        activations: see :class:`q2export.contracts.quantization.Quantization`.
        quantized_weights: how many; ``quantized_bytes``: of their codes, scales and zero points.
        kept_weights: matrices in high precision; ``kept_bytes``: theirs.
    """

    format_version: int
    activations: Activations
    quantized_weights: int
    quantized_bytes: int
    kept_weights: int
    kept_bytes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "format_version", "quantized_weights")
        _check_not_negative(self, "quantized_bytes", "kept_weights", "kept_bytes")


@dataclass(frozen=True)
class QualitySummary:
    """What quantization costs, measured while building on a text, against the unquantized model.

    Attributes:
        measured: whose logits: those of the ``engine``, or, where this machine cannot run it, those that
            ``pytorch`` computes from the quantized weights.
        passed: whether the limits of the profile held; a package is only made where they did not if that was
            asked for (``--allow-quality-loss``).
        text: its name. tokens: compared positions.
        reference_perplexity, quantized_perplexity, mean_kl, top1_agreement: see
            :class:`q2export.compare.quality.results.TextQuality`.
    """

    measured: Measured
    passed: bool
    text: str
    tokens: int
    reference_perplexity: float
    quantized_perplexity: float
    mean_kl: float
    top1_agreement: float


@dataclass(frozen=True)
class ParitySummary:
    """Outcome of the parity check made while building: logits of the engine against the PyTorch reference.

    Attributes:
        tokens: compared positions. max_abs_error, mean_abs_error: of any logit, of all logits.
        max_kl: largest KL(reference || engine) of any position, in nats. min_cosine: smallest cosine
            similarity.
        top1_agreement: fraction of positions, 0 to 1, at which both rank the same token first.
    """

    passed: bool
    tokens: int
    max_abs_error: float
    mean_abs_error: float
    max_kl: float
    min_cosine: float
    top1_agreement: float

    def __post_init__(self) -> None:
        _check_positive(self, "tokens")
        for name in ("max_abs_error", "mean_abs_error", "max_kl", "min_cosine", "top1_agreement"):
            if not math.isfinite(getattr(self, name)):
                raise PackageError(f"{name} must be finite, found {getattr(self, name)}")
