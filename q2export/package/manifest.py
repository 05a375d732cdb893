"""The written format of an engine package: ``manifest.json`` and the checks a package passes before it is
used.

A package is a folder. Its manifest lists every other file with size and digests, says what the engine is and
where its weights come from. All paths are relative, with ``/``, so that the folder can be moved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from q2export.contracts.profile import Profile, Target
from q2export.contracts.quantization import PACKED_FORMAT_VERSION
from q2export.errors import PackageError
from q2export.package.rebuild import rebuild_command
from q2export.package.sections import (
    ALWAYS_HASHED_BYTES,
    GRAPH_SUFFIX,
    EngineInfo,
    FileRecord,
    ModelInfo,
    ParitySummary,
    Placement,
    QualitySummary,
    QuantizationInfo,
    TensorRTInfo,
    ToolInfo,
    WeightFile,
    WeightsInfo,
)
from q2export.strict.codec import Source, from_plain, to_plain
from q2export.strict.json import parse_object, shown
from q2export.version import __version__

__all__ = [
    "ALWAYS_HASHED_BYTES",
    "GRAPH_FILE",
    "GRAPH_SUFFIX",
    "LIBRARIES",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "MAX_TEXT_BYTES",
    "SCHEMA_VERSION",
    "SHARD_FOLDER",
    "TEXT_FILES",
    "TOOL_NAME",
    "EngineInfo",
    "FileRecord",
    "Manifest",
    "ModelInfo",
    "ParitySummary",
    "Placement",
    "QualitySummary",
    "QuantizationInfo",
    "TensorRTInfo",
    "ToolInfo",
    "WeightFile",
    "WeightsInfo",
    "check_relative_path",
    "installed_versions",
    "this_tool",
]

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20
"""Some ten thousand files; the memory that malformed JSON of this size takes is bearable."""
GRAPH_FILE = "model.onnx"
"""The ONNX file of every package: the engine, or what a TensorRT engine was built from."""
SHARD_FOLDER = "weights"
"""Of a package: files of the checkpoint, or a checkpoint in the packed form that was made of it."""
TEXT_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Copied from the checkpoint where it has them: what the runtime knows of text."""
MAX_TEXT_BYTES = 64 << 20
"""Of each of these; a tokenizer of 152,000 tokens has 7 MB."""
SCHEMA_VERSION = 5
TOOL_NAME = "q2export"
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


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


def this_tool() -> ToolInfo:
    """This program and its installed version."""
    return ToolInfo(TOOL_NAME, __version__)


LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "tokenizers", "polygraphy")
"""Distributions whose versions a manifest and a parity report record."""


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution name -> version, for those of ``distributions`` that are installed."""
    from importlib import metadata  # 20 ms that reading a package need not pay

    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def utc_now() -> str:
    """The current time as the manifest writes it, ``2026-11-30T12:00:00Z``.

    With ``SOURCE_DATE_EPOCH`` set it is that one, in seconds since 1970, so that a package can be built again
    byte for byte (https://reproducible-builds.org/specs/source-date-epoch/).

    Raises:
        PackageError: ``SOURCE_DATE_EPOCH`` is not such a number.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return time.strftime(_TIME_FORMAT, time.gmtime())
    if not re.fullmatch(r"[0-9]{1,11}", given):
        raise PackageError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {shown(given)}")
    return time.strftime(_TIME_FORMAT, time.gmtime(int(given)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        profile: the resolved profile; None for an exported graph.
        profile_overrides: what of it came from the command line, by dotted key; the rebuild command repeats
            it.
        quantization: None if no weight is quantized.
        parity: None if no parity check was made; ``parity_skipped`` then says why.
        quality: what quantizing cost; None if that was not measured: ``quality_skipped`` then says why, if
            weights are quantized at all.
        files: every file of the package but the manifest itself, by relative path.
        libraries: versions of the libraries that made the engine, by distribution name.
        created: UTC, ``2026-11-30T12:00:00Z``.
    """

    schema_version: int = SCHEMA_VERSION
    tool: ToolInfo = field(default_factory=this_tool)
    created: str = field(default_factory=utc_now)
    op_contract_version: int
    model: ModelInfo
    target: Target
    profile: Profile | None
    profile_overrides: Mapping[str, object]
    engine: EngineInfo
    weights: WeightsInfo
    quantization: QuantizationInfo | None = None
    parity: ParitySummary | None
    parity_skipped: str | None
    quality: QualitySummary | None = None
    quality_skipped: str | None = None
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
        if self.quality is not None and self.quality_skipped is not None:
            raise PackageError("not both of quality and quality_skipped may be given")
        leaves = {} if self.profile is None else self.profile.leaves()
        for key, value in self.profile_overrides.items():
            if key not in leaves or leaves[key] != value:
                raise PackageError(f"profile_overrides: {shown(key)} is {shown(value)}, not so in profile")
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

    @property
    def threads(self) -> int:
        """CPU threads of an ONNX Runtime engine: the profile's, at most one per core of this machine."""
        threads = 0 if self.profile is None else self.profile.threads
        return min(threads, len(os.sched_getaffinity(0)))

    @property
    def built_for(self) -> Profile:
        """The profile.

        Raises:
            PackageError: an exported graph has none.
        """
        if self.profile is None:
            raise PackageError(f"{self.model.id}: an exported graph has no profile to compare by; build it")
        return self.profile

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
        _check_packed_form(data, source)
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


def _check_packed_form(data: Mapping[str, object], source: Source) -> None:
    """Quantized weights are read in place, so a package whose weights have another form cannot run."""
    quantization = data.get("quantization")
    found = quantization.get("format_version") if isinstance(quantization, dict) else None
    if isinstance(found, int) and found != PACKED_FORMAT_VERSION:
        command = rebuild_command(data, Path(source.label).parent)
        raise PackageError(
            f"{source.label}: quantization.format_version: expected {PACKED_FORMAT_VERSION}, found {found}, "
            f"a form of weights that {TOOL_NAME} {this_tool().version} does not read; rebuild with: {command}"
        )
