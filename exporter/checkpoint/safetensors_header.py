"""The header of one safetensors file, checked against the written format and the size of the file.

The format (github.com/huggingface/safetensors, README "Format"): 8 bytes, little-endian, the length N of the
header; N bytes of JSON; then the tensors, which cover the rest of the file without gaps or overlaps.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from q2export.contracts.dtypes import BY_NAME, BY_SAFETENSORS, FLOAT_NAMES
from q2export.errors import CheckpointError
from q2export.strict.json import parse_object, shown

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
FLOAT_DTYPES = tuple(BY_NAME[name].safetensors for name in FLOAT_NAMES)
QUANTIZED_DTYPES = (*FLOAT_DTYPES, "I32", "U8")
"""What quantized checkpoints hold besides: packed codes and zero points, group and column indices."""

_MAX_RANK = 8
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies; nothing of it has been read.

    ``dtype`` is safetensors' own name; ``offset`` counts bytes from the start of ``file``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return BY_SAFETENSORS[self.dtype].itemsize


def read_header(path: Path, dtypes: Collection[str] = FLOAT_DTYPES) -> tuple[TensorRef, ...]:
    """Read the tensors of one safetensors file, in the order of their offsets.

    Args:
        path: the file.
        dtypes: those accepted: :data:`FLOAT_DTYPES`, or :data:`QUANTIZED_DTYPES` where ``config.json``
            says that the checkpoint is quantized.

    Raises:
        CheckpointError: if the file cannot be read, or its header breaks the format, names another dtype, or
            disagrees with the size of the file.
    """
    header, data_start, file_size = _read_json(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__: expected an object of strings, found {shown(metadata)}")
    refs = [_tensor(path, name, entry, data_start, dtypes) for name, entry in header.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.nbytes))
    _check_coverage(path, refs, data_start, file_size)
    return tuple(refs)


def _read_json(path: Path) -> tuple[dict[str, object], int, int]:
    """The header, the offset of the first data byte, and the size of the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a regular file")
        with open(path, "rb", buffering=0) as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            end = _LENGTH_BYTES + length
            if status.st_size < _LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES or end > status.st_size:
                raise CheckpointError(
                    f"{path}: not a safetensors file or truncated: its first 8 bytes promise a "
                    f"header of {length} bytes (2 to {MAX_HEADER_BYTES} are possible), the file has "
                    f"{status.st_size} in all"
                )
            content = os.pread(file.fileno(), length, _LENGTH_BYTES)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    if len(content) != length or not content.startswith(b"{"):
        raise CheckpointError(f"{path}: expected a header of {length} bytes that starts with '{{'")
    return parse_object(content, f"{path}: header", CheckpointError), end, status.st_size


def _tensor(path: Path, name: str, entry: object, data_start: int, dtypes: Collection[str]) -> TensorRef:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, found {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        advice = "; a quantized checkpoint has a quantization_config" if dtypes == FLOAT_DTYPES else ""
        raise CheckpointError(f"{where}: expected dtype {', '.join(dtypes)}, found {shown(dtype)}{advice}")
    if not _are_integers(shape, low=1) or len(shape) > _MAX_RANK:
        raise CheckpointError(
            f"{where}: shape: expected up to {_MAX_RANK} positive integers, found {shown(shape)}"
        )
    if not _are_integers(offsets, low=0) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets: expected [begin, end], found {shown(offsets)}")
    begin, end = offsets
    expected = math.prod(shape) * BY_SAFETENSORS[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: data_offsets {begin} to {end} hold {end - begin} bytes, "
            f"{dtype} {shown(shape)} needs {expected}"
        )
    return TensorRef(name, dtype, tuple(shape), path, data_start + begin, expected)


def _are_integers(value: object, low: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= low for item in value)


def _check_coverage(path: Path, refs: list[TensorRef], data_start: int, file_size: int) -> None:
    """Refuse holes, overlaps, a truncated file and bytes after the last tensor."""
    position = data_start
    previous = "the header"
    for ref in refs:
        if ref.offset != position:
            kind = "overlaps" if ref.offset < position else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {shown(ref.name)} starts at byte {ref.offset} and {kind} {previous}, "
                f"which ends at {position}"
            )
        position += ref.nbytes
        previous = f"tensor {shown(ref.name)}"
    if position != file_size:
        kind = "is truncated" if position > file_size else "has bytes after the last tensor"
        raise CheckpointError(
            f"{path}: the file {kind}: its tensors end at byte {position}, the file has {file_size}; "
            "download or copy it again"
        )
