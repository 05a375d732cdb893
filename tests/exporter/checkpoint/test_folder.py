"""Checkpoint folders: one file or shards, lazy headers, streamed values, and every way to be wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.config import load_config
from q2export.exporter.checkpoint.folder import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    TensorRef,
    open_checkpoint,
    read_blocks,
)
from q2export.exporter.checkpoint.parameters import check_parameters
from tests.helpers.checkpoints import (
    header_bytes,
    make_header,
    shard_name,
    split_file,
    tiny_config,
    write_checkpoint,
    write_index,
    write_json,
    write_sparse_checkpoint,
)
from tests.helpers.shared import real_config


def values_of(ref: TensorRef, block_bytes: int = 8 << 20) -> np.ndarray:
    blocks = list(read_blocks(ref, block_bytes))
    starts = [start for start, _ in blocks]
    assert starts == [0, *np.cumsum([block.size for _, block in blocks])[:-1]]
    return np.concatenate([block for _, block in blocks]).reshape(ref.shape)


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_of_the_safetensors_library(tmp_path: Path, shards: int) -> None:
    folder = write_checkpoint(tmp_path, tiny_config(), shards=shards)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files) == shards
    expected = {name: values for file in checkpoint.files for name, values in load_file(file).items()}
    assert checkpoint.tensors.keys() == expected.keys()
    for name, ref in checkpoint.tensors.items():
        assert (ref.name, ref.dtype, ref.shape) == (name, "F32", expected[name].shape)
        assert np.array_equal(values_of(ref).view("<f4"), expected[name])


def test_file_written_by_the_safetensors_library(tmp_path: Path) -> None:
    """The library sorts by alignment and pads its header."""
    tensors = {
        "b": np.arange(15, dtype="<f2").reshape(3, 5),
        "a": np.float32(7.5).reshape(1),
        "c": np.ones(3, "<f2"),
    }
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert {name: ref.dtype for name, ref in checkpoint.tensors.items()} == {
        "a": "F32",
        "b": "F16",
        "c": "F16",
    }
    for name, values in tensors.items():
        assert np.array_equal(values_of(checkpoint.tensors[name]).view(values.dtype), values)


@pytest.mark.parametrize("block_bytes", [1, 6, 60, 61, 1 << 20])
def test_blocks_of_any_size(tmp_path: Path, block_bytes: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (3, 5, 7), dtype="<u2").view("<f2")
    save_file({"x": values}, tmp_path / SINGLE_FILE)
    ref = open_checkpoint(tmp_path).tensors["x"]
    assert np.array_equal(values_of(ref, block_bytes), values.view("<u2"))
    assert max(block.nbytes for _, block in read_blocks(ref, block_bytes)) <= max(block_bytes, 2)


def test_dtype_is_that_of_most_matrices(tmp_path: Path) -> None:
    header = make_header([("m", (8, 8)), ("n", (4, 4))], "BF16")
    header["v"] = {"dtype": "F32", "shape": [1000], "data_offsets": [160, 4160]}
    header["s"] = {"dtype": "F32", "shape": [4, 4], "data_offsets": [4160, 4224]}
    (tmp_path / SINGLE_FILE).write_bytes(header_bytes(header) + bytes(4224))
    assert open_checkpoint(tmp_path).dtype == "BF16"


def test_hub_cache_snapshot_of_symlinks(tmp_path: Path) -> None:
    blobs = write_checkpoint(tmp_path / "blobs", tiny_config(), shards=2)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        moved = file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(os.path.relpath(moved, snapshot))
    checkpoint = open_checkpoint(snapshot)
    assert [file.parent for file in checkpoint.files] == [snapshot, snapshot]
    check_parameters(checkpoint, load_config(snapshot))
    assert values_of(checkpoint.tensors["model.norm.weight"]).shape == (56,)


def test_shards_in_a_sub_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config(), shards=2)
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / "weights").mkdir()
    for name in (shard_name(0, 2), shard_name(1, 2)):
        (folder / name).rename(folder / "weights" / name)
    write_index(folder, {name: f"weights/./{file}" for name, file in index["weight_map"].items()}, 0)
    check_parameters(open_checkpoint(folder), load_config(folder))


@pytest.mark.parametrize(("name", "gigabytes"), [("Qwen2-72B", 145), ("Qwen2-57B-A14B", 114)])
def test_full_size_checkpoint_is_opened_without_reading_it(tmp_path: Path, name: str, gigabytes: int) -> None:
    config = real_config(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = write_sparse_checkpoint(tmp_path, config)
    checkpoint = open_checkpoint(folder)
    check_parameters(checkpoint, load_config(folder))
    assert sum(file.stat().st_size for file in checkpoint.files) // 10**9 == gigabytes
    assert sum(file.stat().st_blocks for file in checkpoint.files) * 512 < 20e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config())
    ref = open_checkpoint(folder).tensors["lm_head.weight"]
    with open(ref.file, "r+b") as file:
        file.truncate(ref.offset + ref.nbytes - 1)
    with pytest.raises(
        CheckpointError, match=r"'lm_head.weight': expected .* it changed since it was opened"
    ):
        list(read_blocks(ref, 1000))
    ref.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        list(read_blocks(ref))


Edit = Callable[[dict], object]


def with_header(edit: Edit, data: bytes = b"\1" * 48) -> bytes:
    """A file of two tensors, a [2, 4] F32 and b [8] BF16, after ``edit`` of its header."""
    header: dict = {
        "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "b": {"dtype": "BF16", "shape": [8], "data_offsets": [32, 48]},
    }
    edit(header)
    return header_bytes(header) + data


def entry(name: str, **changes: object) -> Edit:
    return lambda header: header[name].update(changes)


GOOD = with_header(lambda header: None)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file or truncated"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "not a safetensors file or truncated"),
    "no header": (bytes(8) + b"{}", "promise a header of 0 bytes"),
    "header of 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "promise a header of 100000001 bytes"),
    "header of 2**64 bytes": (b"\xff" * 8 + b"{}", "promise a header of 18446744073709551615 bytes"),
    "header longer than the file": ((3).to_bytes(8, "little") + b"{}", "promise a header of 3 bytes"),
    "header is not JSON": ((4).to_bytes(8, "little") + b"{x}}", "header: not valid JSON"),
    "header is not an object": ((2).to_bytes(8, "little") + b"[]", "that starts with '{'"),
    "header starts with a space": ((3).to_bytes(8, "little") + b" {}", "that starts with '{'"),
    "header is not UTF-8": ((3).to_bytes(8, "little") + b"{\xff}", "expected UTF-8 text"),
    "name twice": ((13).to_bytes(8, "little") + b'{"a":1,"a":1}', "the key 'a' is given twice"),
    "metadata is a list": (
        with_header(lambda h: h.update(__metadata__=[])),
        "__metadata__: expected an object",
    ),
    "metadata of numbers": (with_header(lambda h: h.update(__metadata__={"a": 1})), "__metadata__: expected"),
    "entry is a list": (
        with_header(lambda h: h.update(a=[])),
        "tensor 'a': expected dtype, shape and data_offsets",
    ),
    "entry lacks shape": (
        with_header(lambda h: h["a"].pop("shape")),
        "expected dtype, shape and data_offsets",
    ),
    "entry with one key more": (
        with_header(entry("a", stride=[1])),
        "expected dtype, shape and data_offsets",
    ),
    "dtype unknown": (with_header(entry("a", dtype="F33")), "expected dtype F32, F16, BF16, found 'F33'"),
    "dtype quantized": (
        with_header(entry("b", dtype="I16")),
        "expected dtype F32, F16, BF16, found 'I16'; a quantized checkpoint has a quantization_config",
    ),
    "dtype not a string": (with_header(entry("b", dtype=["BF16"])), "expected dtype"),
    "negative shape": (with_header(entry("a", shape=[-2, -4])), "shape: expected up to 8 positive integers"),
    "zero size": (with_header(entry("a", shape=[0, 4], data_offsets=[0, 0])), "expected up to 8 positive"),
    "boolean in shape": (with_header(entry("b", shape=[8, True])), "expected up to 8 positive"),
    "float in shape": (with_header(entry("b", shape=[8.0])), "expected up to 8 positive"),
    "shape of rank 1000": (with_header(entry("b", shape=[8] + [1] * 999)), "expected up to 8 positive"),
    "shape too large": (with_header(entry("b", shape=[2**63, 2**63])), "hold 16 bytes"),
    "offsets reversed": (with_header(entry("b", data_offsets=[48, 32])), r"expected \[begin, end\]"),
    "offset negative": (with_header(entry("a", data_offsets=[-32, 0])), r"expected \[begin, end\]"),
    "three offsets": (with_header(entry("b", data_offsets=[32, 40, 48])), r"expected \[begin, end\]"),
    "offsets too short": (with_header(entry("b", data_offsets=[32, 46])), "hold 14 bytes, BF16 .8. needs 16"),
    "overlap": (
        with_header(entry("b", data_offsets=[16, 32])),
        "tensor 'b' starts at .* overlaps tensor 'a'",
    ),
    "hole": (
        with_header(entry("b", data_offsets=[34, 50])),
        "tensor 'b' starts at .* leaves a hole after tensor 'a'",
    ),
    "hole at the start": (with_header(lambda h: h.pop("a")), "leaves a hole after the header"),
    "truncated": (GOOD[:-1], "the file is truncated: its tensors end at byte"),
    "trailing bytes": (GOOD + b"\0", "the file has bytes after the last tensor"),
    "offset past the end": (
        with_header(entry("a", shape=[2**40], data_offsets=[48, 48 + 2**42])),
        "leaves a hole after the header",
    ),
}


def test_the_file_the_bad_ones_derive_from_is_good(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(GOOD)
    assert [ref.offset for ref in open_checkpoint(tmp_path).tensors.values()] == [
        len(GOOD) - 48,
        len(GOOD) - 16,
    ]


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / SINGLE_FILE))
    assert len(str(caught.value)) < 500


def edit_index(folder: Path, edit: Edit) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    edit(index)
    write_json(folder / INDEX_FILE, index)


def rename_in_index(folder: Path, tensor: str, file: object) -> None:
    edit_index(folder, lambda index: index["weight_map"].update({tensor: file}))


def copy_tensor_to_other_shard(folder: Path) -> None:
    first = split_file(folder / shard_name(0, 2))[0]
    header, data = split_file(folder / shard_name(1, 2))
    name = "model.embed_tokens.weight"
    size = first[name]["data_offsets"][1] - first[name]["data_offsets"][0]
    header[name] = {**first[name], "data_offsets": [len(data), len(data) + size]}
    (folder / shard_name(1, 2)).write_bytes(header_bytes(header) + data + bytes(size))


NORM = "model.norm.weight"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (
        lambda f: (f / INDEX_FILE).unlink(),
        "found 'model-00001-of-00002.safetensors'.* without an index",
    ),
    "shard absent": (
        lambda f: (f / shard_name(1, 2)).unlink(),
        "model-00002-of-00002.safetensors: cannot be read: No",
    ),
    "shard is a folder": (
        lambda f: ((f / shard_name(1, 2)).unlink(), (f / shard_name(1, 2)).mkdir()),
        "model-00002-of-00002.safetensors: expected a regular file",
    ),
    "shard is a pipe": (
        lambda f: ((f / shard_name(1, 2)).unlink(), os.mkfifo(f / shard_name(1, 2))),
        "model-00002-of-00002.safetensors: expected a regular file",
    ),
    "dangling link": (
        lambda f: ((f / shard_name(0, 2)).unlink(), (f / shard_name(0, 2)).symlink_to("gone")),
        "model-00001-of-00002.safetensors: cannot be read",
    ),
    "index names an absent file": (
        lambda f: rename_in_index(f, NORM, "model-3.safetensors"),
        "model-3.safetensors: c",
    ),
    "absolute path": (
        lambda f: rename_in_index(f, NORM, str(f / shard_name(1, 2))),
        "inside the folder, found '/",
    ),
    "path to the parent": (lambda f: rename_in_index(f, NORM, f"../x/{shard_name(1, 2)}"), r"found '\.\./x"),
    "path through the parent": (lambda f: rename_in_index(f, NORM, f"a/../{shard_name(1, 2)}"), "found 'a/"),
    "backslash": (
        lambda f: rename_in_index(f, NORM, "..\\x.safetensors"),
        "expected the name of a file inside",
    ),
    "empty name": (
        lambda f: rename_in_index(f, NORM, ""),
        "expected the name of a file inside the folder, found ''",
    ),
    "the folder itself": (
        lambda f: rename_in_index(f, NORM, "."),
        "expected the name of a file inside the folder",
    ),
    "NUL in name": (
        lambda f: rename_in_index(f, NORM, "a\0b"),
        "expected the name of a file inside the folder",
    ),
    "file is a number": (lambda f: rename_in_index(f, NORM, 2), "inside the folder, found 2"),
    "wrong shard": (
        lambda f: rename_in_index(f, NORM, shard_name(0, 2)),
        "places tensor 'model.norm.weight' in",
    ),
    "tensor only in index": (lambda f: rename_in_index(f, "x", shard_name(1, 2)), r"lacks tensors .*: 'x'"),
    "tensor not in index": (
        lambda f: edit_index(f, lambda index: index["weight_map"].pop(NORM)),
        "does not name 1 tensor.* of the shards: 'model.norm.weight'",
    ),
    "no weight_map": (
        lambda f: write_json(f / INDEX_FILE, {"metadata": {}}),
        "weight_map: expected tensor names",
    ),
    "weight_map empty": (lambda f: write_json(f / INDEX_FILE, {"weight_map": {}}), "weight_map: expected"),
    "weight_map a list": (
        lambda f: write_json(f / INDEX_FILE, {"weight_map": [NORM]}),
        "weight_map: expected",
    ),
    "metadata a list": (
        lambda f: edit_index(f, lambda index: index.update(metadata=[])),
        "metadata: expected",
    ),
    "index not JSON": (lambda f: (f / INDEX_FILE).write_text("{"), "not valid JSON"),
    "tensor in two shards": (
        copy_tensor_to_other_shard,
        "'model.embed_tokens.weight' is in .*00001-of-00002",
    ),
    "stale shard": (
        lambda f: shutil.copy(f / shard_name(0, 2), f / "model-00001-of-00009.safetensors"),
        "model-00001-of-00009.safetensors: not part of the model.*does not name it",
    ),
    "single file beside the index": (
        lambda f: shutil.copy(f / shard_name(0, 2), f / SINGLE_FILE),
        "not part of the",
    ),
    "adapter": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "adapters are not applied; merge it first",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(tmp_path: Path, case: str) -> None:
    damage, message = BAD_FOLDERS[case]
    folder = write_checkpoint(tmp_path / "model", tiny_config(), shards=2)
    open_checkpoint(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(str(folder))


def test_adapter_weights_beside_a_single_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config())
    shutil.copy(folder / SINGLE_FILE, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: not part of the model"):
        open_checkpoint(folder)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither; convert the weights to safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="expected a checkpoint folder: No such file"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a checkpoint folder: Not a directory"):
        open_checkpoint(tmp_path / "file")


def test_frozen(tmp_path: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(write_checkpoint(tmp_path, tiny_config()))
    with pytest.raises(TypeError):
        checkpoint.tensors["x"] = checkpoint.tensors[NORM]  # type: ignore[index]
