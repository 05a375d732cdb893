"""A checkpoint folder as a table of tensors, and their values as a stream.

Opening reads headers only, a few kilobytes per shard. Values are read, never mapped, so that no page of a
145 GB checkpoint counts as memory of this process.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.listing import listed_names
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES, TensorRef, read_header
from q2export.strict.json import read_object, shown

__all__ = ["Checkpoint", "RawBits", "TensorRef", "check_folder", "open_checkpoint", "read_blocks"]

RawBits = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by name, in the order of ``files`` and of their offsets within."""

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRef]

    @property
    def dtype(self) -> str:
        """``F32``, ``F16`` or ``BF16``: the one most bytes of the matrices in floating point have.

        Tensors of different dtypes may stand beside each other (fp32 norms in a bf16 model, say).
        """
        nbytes: Counter[str] = Counter()
        for ref in self.tensors.values():
            if len(ref.shape) > 1 and ref.dtype in FLOAT_DTYPES:
                nbytes[ref.dtype] += ref.nbytes
        return max(nbytes, key=lambda dtype: nbytes[dtype]) if nbytes else "F32"


TEXT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""What a checkpoint may hold besides weights and configuration."""


def check_folder(folder: Path) -> None:
    """Refuse what is no complete model, from the names in the folder.

    Raises:
        CheckpointError: a text is a link that leads nowhere, as in a hub cache that was pruned: without it
            the engine would generate other text. Or the folder holds a LoRA adapter and no model.
    """
    for name in TEXT_FILES:
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path}: leads to {os.readlink(path)}, which is not there (a hub cache that was pruned?); "
                "get the model again"
            )
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file() and not (folder / "config.json").exists():
        base = read_object(adapter, _MAX_INDEX_BYTES, CheckpointError).get("base_model_name_or_path")
        of = f" of {shown(base)}" if base else ""
        raise CheckpointError(
            f"{folder}: holds a LoRA adapter ({ADAPTER_CONFIG}){of}, not a model; merge it first, with "
            "peft's merge_and_unload() and save_pretrained(), and give the merged folder"
        )


def open_checkpoint(folder: Path, dtypes: Collection[str] = FLOAT_DTYPES) -> Checkpoint:
    """Read the headers of ``model.safetensors`` or of the shards in ``model.safetensors.index.json``.

    Every ``.safetensors`` file of the folder must take part: one left over is a stale shard, a second copy or
    an adapter that was not merged, and leaving it out silently would give another model.

    Args:
        folder: the checkpoint.
        dtypes: those accepted, see :func:`~q2export.exporter.checkpoint.safetensors_header.read_header`.

    Raises:
        CheckpointError: naming the file, if the folder, the index, a shard or a header is not in order.
    """
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as problem:
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder: {problem.strerror or problem}"
        ) from problem
    if ADAPTER_CONFIG in present:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: adapters are not applied; merge it first")
    weight_map = _read_index(folder) if INDEX_FILE in present else None
    names = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
    left_over = sorted(name for name in present if name.endswith(".safetensors") and name not in names)
    if SINGLE_FILE in names and SINGLE_FILE not in present:
        raise CheckpointError(
            f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found "
            + (
                f"{listed_names(left_over)} without an index"
                if left_over
                else "neither; convert the weights to safetensors"
            )
        )
    if left_over:
        raise CheckpointError(
            f"{folder / left_over[0]}: not part of {_source(weight_map)}; move it out of the folder"
        )
    tensors: dict[str, TensorRef] = {}
    for name in names:
        for ref in read_header(folder / name, dtypes):
            if ref.name in tensors:
                raise CheckpointError(
                    f"{ref.file}: tensor {shown(ref.name)} is in {tensors[ref.name].file} too"
                )
            tensors[ref.name] = ref
    if weight_map is not None:
        _check_index(folder, weight_map, tensors)
    return Checkpoint(folder, tuple(folder / name for name in names), MappingProxyType(tensors))


def _source(weight_map: Mapping[str, str] | None) -> str:
    return (
        f"the model, which is in {SINGLE_FILE}"
        if weight_map is None
        else f"the model: {INDEX_FILE} does not name it"
    )


def _read_index(folder: Path) -> dict[str, str]:
    """``weight_map`` of the index, each file name normalised and inside the folder."""
    path = folder / INDEX_FILE
    index = read_object(path, _MAX_INDEX_BYTES, CheckpointError)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: weight_map: expected tensor names and their files, found {shown(weight_map)}"
        )
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError(f"{path}: metadata: expected an object, found {shown(index['metadata'])}")
    return {name: _shard_name(path, name, file) for name, file in weight_map.items()}


def _shard_name(path: Path, tensor: str, file: object) -> str:
    relative = PurePosixPath(file) if isinstance(file, str) else PurePosixPath()
    if (
        not isinstance(file, str)
        or relative.is_absolute()
        or ".." in relative.parts
        or not relative.name
        or not file.isprintable()  # no NUL, no line break in a message, no lone surrogate
        or "\\" in file
    ):
        raise CheckpointError(
            f"{path}: tensor {shown(tensor)}: expected the name of a file inside the folder, "
            f"found {shown(file)}"
        )
    return str(relative)


def _check_index(folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorRef]) -> None:
    """The index and the headers must name the same tensors in the same files."""
    path = folder / INDEX_FILE
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CheckpointError(
            f"{folder / weight_map[absent[0]]}: lacks tensors that {INDEX_FILE} places in it "
            f"({len(absent)} in all shards): {listed_names(absent)}"
        )
    unlisted = sorted(tensors.keys() - weight_map.keys())
    if unlisted:
        raise CheckpointError(
            f"{path}: does not name {len(unlisted)} tensor(s) of the shards: {listed_names(unlisted)}"
        )
    for name, file in weight_map.items():
        if tensors[name].file != folder / file:
            raise CheckpointError(
                f"{path}: places tensor {shown(name)} in {shown(file)}, found in {tensors[name].file}"
            )


def read_blocks(ref: TensorRef, block_bytes: int = 8 << 20) -> Iterator[tuple[int, RawBits]]:
    """Stream a tensor's raw bits in blocks of at most ``block_bytes``.

    Yields:
        the index of the block's first element in the flattened tensor, and the bits as unsigned integers of
        the dtype's size: uint32 for F32 and I32, uint16 for F16 and BF16, uint8 for U8. Each block is an
        array of its own.

    Raises:
        CheckpointError: if the file cannot be read or has become shorter than its header said.
    """
    itemsize = ref.itemsize
    step = max(block_bytes // itemsize, 1)
    count = ref.nbytes // itemsize
    bits = np.dtype(f"<u{itemsize}")
    try:
        with open(ref.file, "rb", buffering=0) as file:
            file.seek(ref.offset)
            for start in range(0, count, step):
                block = np.empty(min(step, count - start), bits)
                _fill(file, block, ref)
                yield start, block
    except OSError as problem:
        raise CheckpointError(f"{ref.file}: cannot be read: {problem.strerror or problem}") from problem


def _fill(file: io.FileIO, block: RawBits, ref: TensorRef) -> None:
    view = block.data.cast("B")
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            raise CheckpointError(
                f"{ref.file}: tensor {shown(ref.name)}: expected {ref.nbytes} bytes at {ref.offset}, the "
                f"file ends at {file.tell()}; it changed since it was opened"
            )
        filled += count
