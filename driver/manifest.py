"""The written format of an engine package: ``manifest.json`` and the checks a package passes before it is
used.

A package is a folder. Its manifest lists every other file with size and digests, says what the engine is and
where its weights come from. All paths are relative, with ``/``, so that the folder can be moved.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from q2export import __version__
from q2export.codec import Source, from_plain, to_plain
from q2export.errors import PackageError
from q2export.hashing import FileDigest
from q2export.strict_json import parse_object, shown

MANIFEST_NAME = "manifest.json"
GRAPH_FILE = "model.onnx"
"""The ONNX file of every package: the engine, or what a TensorRT engine was built from."""
SCHEMA_VERSION = 2
TOOL_NAME = "q2export"
ALWAYS_HASHED_BYTES = 64 << 20
"""Files up to this size are hashed whole whenever a package is opened."""

Placement = Literal["converted", "ancestor", "reflink", "hardlink", "copy"]
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_HEX = re.compile(r"[0-9a-f]{64}")


def check_relative_path(name: str) -> None:
    """Refuse a name that is not a plain relative POSIX path below the package.

    Raises:
        PackageError: absolute, empty, ``.`` or ``..`` components, backslash, control or unencodable
            characters.
    """
    parts = name.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\\ud800-\udfff]", name)
    if bad or name == MANIFEST_NAME:
        raise PackageError(
            f"{shown(name)} is not a valid path of a package file: expected a relative path inside it"
        )


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
    """Size in bytes and digests of one file of the package (see :mod:`q2export.hashing`).

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
    dtype: Literal["float32", "float16", "bfloat16"]
    kv_dtype: Literal["float32", "float16", "bfloat16"]
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
        if (self.format == "tensorrt") != (self.tensorrt is not None):
            problem = "needs a" if self.tensorrt is None else "has no"
            raise PackageError(f"format {self.format!r} {problem} section 'tensorrt'")
        _check_positive(
            self, "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size", "max_batch"
        )
        _check_positive(self, "max_capacity", "prefill_chunk", "context_length")


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


def this_tool() -> ToolInfo:
    """This program and its installed version."""
    return ToolInfo(TOOL_NAME, __version__)


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution name -> version, for those of ``distributions`` that are installed."""
    from importlib import metadata  # 20 ms that reading a package need not pay

    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def utc_now() -> str:
    """The current time as the manifest writes it: ``2026-11-30T12:00:00Z``."""
    return time.strftime(_TIME_FORMAT, time.gmtime())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        profile: the resolved profile (``Profile.to_dict``).
        profile_overrides: what of it came from the command line, by dotted key; the rebuild command repeats
            it.
        parity: None if no parity check was made; ``parity_skipped`` then says why.
        files: every file of the package but the manifest itself, by relative path.
        libraries: versions of the libraries that made the engine, by distribution name.
        created: UTC, ``2026-11-30T12:00:00Z``.
    """

    schema_version: int = SCHEMA_VERSION
    tool: ToolInfo = field(default_factory=this_tool)
    created: str = field(default_factory=utc_now)
    op_contract_version: int
    model: ModelInfo
    target: Literal["onnxruntime", "tensorrt", "portable"]
    profile: Mapping[str, object]
    profile_overrides: Mapping[str, object]
    engine: EngineInfo
    weights: WeightsInfo
    parity: ParitySummary | None
    parity_skipped: str | None
    files: Mapping[str, FileRecord]
    libraries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            time.strptime(self.created, _TIME_FORMAT)
        except ValueError:
            raise PackageError(
                f"created must look like 2026-11-30T12:00:00Z, found {shown(self.created)}"
            ) from None
        if (self.parity is None) != (self.parity_skipped is not None):
            raise PackageError("exactly one of parity and parity_skipped must be given")
        for name in self.files:
            check_relative_path(name)
        self._check_listed("engine.file", self.engine.file)
        for weight in self.weights.files:
            self._check_listed("weights.files", weight.path)
            if weight.bytes != self.files[weight.path].bytes:
                listed = self.files[weight.path].bytes
                raise PackageError(
                    f"{weight.path} has {weight.bytes} bytes in weights.files, {listed} in files"
                )

    def _check_listed(self, key: str, name: str) -> None:
        if name not in self.files:
            raise PackageError(f"{key} names {shown(name)}, which files does not list")

    def to_json(self) -> str:
        """Text of ``manifest.json``."""
        return json.dumps(to_plain(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, label: str = MANIFEST_NAME) -> Manifest:
        """Parse :meth:`to_json`; unknown, missing and duplicate keys and wrong types are refused.

        Raises:
            PackageError: naming ``label``, the key, what was expected and found.
        """
        # surrogatepass: what UTF-8 cannot say is refused by the parser, with the other malformed text
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        data = parse_object(content, label, PackageError)
        return cls.from_dict(data, label)

    @classmethod
    def from_dict(cls, data: Mapping[str, object], label: str = MANIFEST_NAME) -> Manifest:
        """Read the parsed JSON object of a manifest; raises as :meth:`from_json`."""
        source = Source(label, PackageError)
        _check_schema(data, source)
        return from_plain(cls, data, source)


def _check_schema(data: Mapping[str, object], source: Source) -> None:
    found = data.get("schema_version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise source.refuse("schema_version", "an integer", found)
    if found != SCHEMA_VERSION:
        made_by = data.get("tool")
        version = made_by.get("version") if isinstance(made_by, dict) else None
        by = (
            f" (written by {TOOL_NAME} {version})"
            if isinstance(version, str) and version.isprintable()
            else ""
        )
        age = "newer" if found > SCHEMA_VERSION else "older"
        command = rebuild_command(data, Path(source.label).parent)
        raise PackageError(
            f"{source.label}: schema version {found}{by} is {age} than version {SCHEMA_VERSION}, "
            f"which {TOOL_NAME} {this_tool().version} reads; rebuild with: {command}"
        )


def rebuild_command(manifest: Mapping[str, object], folder: Path) -> str:
    """The ``q2export build`` command line that makes the package again, from the plain data of a manifest.

    Works for manifests of other schema versions too: what it does not find becomes ``MODEL`` or ``PROFILE``.
    """

    def text(section: str, key: str, otherwise: str) -> str:
        data = manifest.get(section)
        value = data.get(key) if isinstance(data, Mapping) else None
        return value if isinstance(value, str) and value and value.isprintable() else otherwise

    words = [TOOL_NAME, "build", "--model", text("model", "id", "MODEL")]
    if revision := text("model", "revision", ""):
        words += ["--revision", revision]
    words += ["--profile", text("profile", "name", "PROFILE")]
    overrides = manifest.get("profile_overrides")
    for key, value in (overrides if isinstance(overrides, Mapping) else {}).items():
        setting = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        words += ["--set", setting] if setting.isprintable() else []
    return shlex.join([*words, "--output", str(folder), "--overwrite"])
