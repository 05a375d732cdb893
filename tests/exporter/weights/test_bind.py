"""Binding: every initializer finds its own bytes, in place or converted, streamed, scanned and counted."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load, load_file, save_file

import q2export
from q2export.errors import CheckpointError, ExportError
from q2export.exporter.checkpoint.folder import SINGLE_FILE, Checkpoint, open_checkpoint
from q2export.exporter.weights.attach import places_of
from q2export.exporter.weights.bind import BindingPlan, plan_binding
from q2export.exporter.weights.convert import converted_header, write_converted
from q2export.exporter.weights.place import scan_shard
from tests.exporter.weights.plans import IR_TYPES, Tensors, bits, graph_of, mixed_tensors, plan_of
from tests.helpers.checkpoints import (
    header_bytes,
    make_header,
    random_weights,
    tiny_config,
    write_checkpoint,
    write_json,
)

# Planning


@pytest.mark.parametrize(
    ("dtype", "in_place"),
    [
        (torch.float32, {"a.norm", "b.norm"}),
        (torch.bfloat16, {"a.weight", "c.weight"}),
        (torch.float16, {"b.weight"}),
    ],
    ids=["fp32", "bf16", "fp16"],  # a set has no order to name a test by
)
def test_what_is_bound_in_place(tmp_path: Path, dtype: torch.dtype, in_place: set[str]) -> None:
    tensors = mixed_tensors()
    plan = plan_of(tmp_path, tensors, dtype)
    assert {binding.name for binding in plan.in_place} == in_place
    assert {binding.name for binding in plan.converted} == tensors.keys() - in_place
    assert plan.in_place_bytes == sum(tensors[name].nbytes for name in in_place)
    converted = sum(tensor.numel() * dtype.itemsize for tensor in tensors.values()) - plan.in_place_bytes
    assert plan.converted_bytes == converted
    assert plan.shards == (tmp_path / SINGLE_FILE,)


def test_a_shard_whose_tensors_are_all_converted_is_not_used(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mixed_tensors() | {"b.weight": torch.ones(3, 1)}, torch.float16)
    assert plan.shards == ()
    assert plan.in_place_bytes == 0


def test_planning_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """All faults of the exporter, caught before anything is written."""
    tensors = mixed_tensors()
    save_file(tensors, tmp_path / SINGLE_FILE)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ExportError, match=r"initializer 'd\.weight' .* found no such tensor"):
        plan_binding(graph_of(tensors | {"d.weight": torch.ones(2)}, torch.float32), checkpoint, tensors)
    turned = tensors | {"a.weight": torch.ones(7, 5)}
    with pytest.raises(ExportError, match=r"'a\.weight' .*\(7, 5\).* found BF16 \(5, 7\)"):
        plan_binding(graph_of(turned, torch.float32), checkpoint, tensors)
    unread = {name: tensor for name, tensor in tensors.items() if name not in ("a.norm", "b.norm")}
    with pytest.raises(ExportError, match=r"does not read 2 parameter\(s\) of the model, first 'a\.norm'"):
        plan_binding(graph_of(unread, torch.float32), checkpoint, tensors)


def test_bound_initializers_are_left_alone(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    model = graph_of(tensors, torch.float32)
    value = ir.Value(
        name="const/one", const_value=ir.tensor([1.0]), type=ir.TensorType(ir.DataType.FLOAT), shape=[1]
    )
    model.graph.initializers.add(value)
    save_file(tensors, tmp_path / SINGLE_FILE)
    plan = plan_binding(model, open_checkpoint(tmp_path), tensors)
    assert [binding.name for binding in plan.bindings] == list(tensors)


# Conversion


@pytest.mark.parametrize("dtype", IR_TYPES, ids=str)
@pytest.mark.parametrize("scan", [True, False])
def test_converted_file_is_a_safetensors_file(tmp_path: Path, dtype: torch.dtype, scan: bool) -> None:
    tensors = mixed_tensors()
    plan = plan_of(tmp_path, tensors, dtype)
    sink, steps = io.BytesIO(), []
    write_converted(plan, sink, scan=scan, advance=steps.append)
    assert sum(steps) == plan.converted_bytes
    found = load(sink.getvalue())
    assert list(found) and found.keys() == {binding.name for binding in plan.converted}
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert bits(tensor) == bits(tensors[name].to(dtype))
    start = len(converted_header(plan))
    assert start % 64 == 0
    assert len(sink.getvalue()) == start + plan.converted_bytes


def corrupt(tensors: Tensors, name: str, index: tuple[int, ...], value: float) -> Tensors:
    tensors[name][index] = value
    return tensors


@pytest.mark.parametrize(
    ("name", "index", "value", "dtype", "message"),
    [
        ("a.weight", (4, 6), float("nan"), torch.float32, r"'a\.weight'\[4, 6\]: nan, expected a finite"),
        ("c.weight", (0, 0), float("-inf"), torch.float16, r"'c\.weight'\[0, 0\]: -inf, expected a finite"),
        (
            "a.norm",
            (12,),
            70_000.0,
            torch.float16,
            r"'a\.norm'\[12\]: 70000\.0 is beyond F16 \(largest 65504",
        ),
        ("a.norm", (0,), -3.4e38, torch.bfloat16, r"'a\.norm'\[0\]: -3\.39\d+e\+38 is beyond BF16"),
    ],
)
def test_scan_while_converting(
    tmp_path: Path, name: str, index: tuple[int, ...], value: float, dtype: torch.dtype, message: str
) -> None:
    tensors = corrupt(mixed_tensors(), name, index, value)
    plan = plan_of(tmp_path, tensors, dtype)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {message}"):
        write_converted(plan, io.BytesIO(), scan=True)
    sink = io.BytesIO()
    write_converted(plan, sink, scan=False)  # as IEEE arithmetic has it
    assert torch.equal(
        load(sink.getvalue())[name].isfinite().logical_not().nonzero(), torch.tensor([list(index)])
    )


def sparse_plan(folder: Path, megabytes: int) -> BindingPlan:
    """One bfloat16 tensor of zeros that takes no disk."""
    shape = (megabytes << 9, 1 << 10)
    header = header_bytes(make_header([("w", shape)], "BF16"))
    with (folder / SINGLE_FILE).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (megabytes << 20))
    model = graph_of({"w": torch.empty(shape, device="meta")}, torch.float32)
    return plan_binding(model, open_checkpoint(folder), ["w"])


class Counter:
    """A sink that keeps nothing."""

    count = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.count += len(data)
        return len(data)


def test_conversion_is_streamed(tmp_path: Path) -> None:
    plan, sink = sparse_plan(tmp_path, 256), Counter()
    tracemalloc.start()
    write_converted(plan, sink, scan=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sink.count > 512 << 20
    assert peak < 72 << 20  # a few blocks of 8 MiB, twice that once converted


def test_scanning_a_shard_is_streamed(tmp_path: Path) -> None:
    plan = sparse_plan(tmp_path, 128)
    tracemalloc.start()
    scan_shard(plan, tmp_path / SINGLE_FILE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.parametrize("cut", [1, 20])
def test_file_that_shrinks_after_planning(tmp_path: Path, cut: int) -> None:
    tensors = mixed_tensors()
    plan = plan_of(tmp_path, tensors, torch.float32)
    path = tmp_path / SINGLE_FILE
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(CheckpointError, match="it changed since it was opened"):
        write_converted(plan, io.BytesIO(), scan=True)
    with pytest.raises(CheckpointError, match="it changed since it was opened"):
        scan_shard(plan, path)
    os.truncate(path, 3)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        scan_shard(plan, path)


# Scanning what stays in place


def test_scan_shard_hashes_the_whole_file_and_counts_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mixed_tensors(), torch.bfloat16)
    path, steps = tmp_path / SINGLE_FILE, []
    assert scan_shard(plan, path, steps.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(steps) == path.stat().st_size


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scan_shard_finds_what_is_not_finite(tmp_path: Path, value: float) -> None:
    tensors = corrupt(mixed_tensors(), "c.weight", (10, 1), value)
    plan = plan_of(tmp_path, tensors, torch.bfloat16)
    message = rf"model\.safetensors: tensor 'c\.weight'\[10, 1\]: {value}, expected a finite number"
    with pytest.raises(CheckpointError, match=message):
        scan_shard(plan, tmp_path / SINGLE_FILE)


def test_scan_shard_leaves_values_that_are_converted_to_the_conversion(tmp_path: Path) -> None:
    tensors = corrupt(mixed_tensors(), "a.norm", (3,), float("nan"))
    plan = plan_of(tmp_path, tensors, torch.bfloat16)
    scan_shard(plan, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"'a\.norm'\[3\]: nan"):
        write_converted(plan, io.BytesIO(), scan=True)


# Attaching


def test_places_need_the_converted_file(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    plan = plan_of(tmp_path, tensors, torch.float32)
    with pytest.raises(ExportError, match=r"'a\.weight' was to be converted, but nothing was written"):
        places_of(plan, {tmp_path / SINGLE_FILE: "w"}, None)


def packed_bits(file: Path) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """(type, shape, bytes) of every external initializer of an ONNX file, read where it says they are."""
    packed = {}
    for tensor in onnx.load(file, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            assert not Path(entry["location"]).is_absolute() and ".." not in entry["location"]
            data = file.parent / entry["location"]
            assert not data.is_symlink()
            with data.open("rb") as stream:
                stream.seek(int(entry["offset"]))
                raw = stream.read(int(entry["length"]))
            assert len(raw) == int(entry["length"])
            packed[tensor.name] = (tensor.data_type, tuple(tensor.dims), raw)
    return packed


def check_export(checkpoint: Path, output: Path, tensors: Tensors, dtype: torch.dtype) -> Path:
    """Export and compare the bytes of every weight; return the folder."""
    name = str(dtype).removeprefix("torch.")
    result = q2export.export(checkpoint, output, target="portable", dtype=name)
    packed = packed_bits(result.onnx)
    assert packed.keys() == tensors.keys()
    for parameter, (kind, shape, raw) in packed.items():
        assert (kind, shape) == (IR_TYPES[dtype], tuple(tensors[parameter].shape))
        assert raw == bits(tensors[parameter].to(dtype))
    return result.package


def as_torch(weights: Mapping[str, npt.NDArray[np.float32]], norms_wide: bool) -> Tensors:
    wide = {name for name in weights if norms_wide and "norm" in name}
    return {
        name: torch.from_numpy(array) if name in wide else torch.from_numpy(array).bfloat16()
        for name, array in weights.items()
    }


@pytest.mark.parametrize(
    ("dtype", "files"),
    [
        (torch.bfloat16, ["weights.safetensors", "weights/model.safetensors"]),
        (torch.float32, ["weights.safetensors", "weights/model.safetensors"]),
        (torch.float16, ["weights.safetensors"]),
    ],
    ids=str,
)
def test_float32_norms_in_a_bfloat16_file(tmp_path: Path, dtype: torch.dtype, files: list[str]) -> None:
    config = tiny_config(torch_dtype="bfloat16")
    tensors = as_torch(random_weights(config), norms_wide=True)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_json(checkpoint / "config.json", config)
    save_file(tensors, checkpoint / SINGLE_FILE)
    folder = check_export(checkpoint, tmp_path / "out", tensors, dtype)
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
    assert sorted(found) == files


def all_tensors(checkpoint: Checkpoint) -> Tensors:
    return {name: tensor for file in checkpoint.files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_shards_of_a_hub_cache(tmp_path: Path, dtype: torch.dtype) -> None:
    """``snapshots/<revision>/model-....safetensors -> ../../blobs/<sha256>``."""
    written = write_checkpoint(
        tmp_path / "written", tiny_config(model_type="qwen2_moe"), dtype="F16", shards=3
    )
    tensors = all_tensors(open_checkpoint(written))
    model = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = model / "snapshots" / "0123abc", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in sorted(written.iterdir()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    folder = check_export(snapshot, tmp_path / "out", tensors, dtype)
    placed = sorted(path.name for path in (folder / "weights").glob("*")) if dtype == torch.float16 else []
    assert placed == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3) if dtype == torch.float16]
    for name in placed:
        assert os.path.samefile(folder / "weights" / name, snapshot / name) or (
            (folder / "weights" / name).read_bytes() == (snapshot / name).read_bytes()
        )


def test_tied_head_saved_beside_the_embedding_is_not_stored_again(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config)
    tensors = load_file(checkpoint / SINGLE_FILE)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, checkpoint / SINGLE_FILE
    )
    assert "lm_head.weight" not in tensors
    check_export(checkpoint, tmp_path / "out", tensors, torch.float32)
    check_export(checkpoint, tmp_path / "half", tensors, torch.float16)
    names = load_file(tmp_path / "half" / "weights.safetensors").keys()
    assert names == tensors.keys()
