"""The quantized checkpoint as a folder: complete or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import CheckpointError, PackageError
from q2export.exporter.checkpoint.source import Source, load_source
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.quantization.quantize import QuantizeResult
from tests.exporter.quantization.models import MOE, blocks_config
from tests.helpers.checkpoints import write_checkpoint

HOW = Quantization("int4", symmetric=False, keep=("model.layers.0.*",))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = write_checkpoint(tmp_path / "model", blocks_config(**MOE, rms_norm_eps=1e-06), dtype="BF16")
    (folder / "tokenizer.json").write_text('{"é": 1}', encoding="utf-8")
    (folder / "training_args.bin").write_text("not for us")
    return load_source(folder)


def write(source: Source, output: Path, *, overwrite: bool = False) -> QuantizeResult:
    return quantize_checkpoint(source, output, HOW, overwrite=overwrite)


def test_the_folder_is_a_checkpoint_that_says_how_it_was_quantized(source: Source, tmp_path: Path) -> None:
    result = write(source, tmp_path / "new" / "out")
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "tokenizer.json").read_bytes() == (source.folder / "tokenizer.json").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    section = config.pop("quantization_config")
    assert config == json.loads((source.folder / "config.json").read_text())
    assert section == {
        "quant_method": "q2export",
        "format_version": 2,
        "bits": 4,
        "block_size": 32,
        "symmetric": False,
        "method": "round-to-nearest",
        "embedding": True,
        "keep": ["model.layers.0.*"],
        "input_order": False,
    }
    assert result.stored_bytes == (folder / "model.safetensors").stat().st_size


def test_it_is_loaded_again_as_what_it_is(source: Source, tmp_path: Path) -> None:
    write(source, tmp_path / "out")
    again = load_source(tmp_path / "out")
    assert again.config.quantization == PackedQuantization.of(HOW)
    assert sorted(again.packed) == sorted(one.name for one in write(source, tmp_path / "out2").weights)
    with pytest.raises(CheckpointError, match="is quantized already"):
        write(again, tmp_path / "out3")
    assert not (tmp_path / "out3").exists()


def test_two_runs_give_the_same_bytes(source: Source, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(source, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_output_that_exists_is_left_alone(source: Source, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PackageError, match=r"out exists already; choose another output, or overwrite it"):
        write(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    write(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "config.json").exists()


def test_only_a_checkpoint_of_ours_is_replaced(source: Source, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(PackageError, match="is not replaced: it is no checkpoint"):
        write(source, output, overwrite=True)
    with pytest.raises(PackageError, match="is not replaced: it is no checkpoint that q2export quantized"):
        write(source, source.folder, overwrite=True)
    (output / "thesis.tex").unlink()
    write(source, output, overwrite=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(
        PackageError,
        match=r"it holds 'notes\.txt', not made by q2export; move it away first",
    ):
        write(source, output, overwrite=True)
    (output / "notes.txt").unlink()
    before = (output / "model.safetensors").stat().st_ino
    write(source, output, overwrite=True)
    assert (output / "model.safetensors").stat().st_ino != before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_nothing(
    code: int, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, pwrite = [0], os.pwrite

    def fail_later(descriptor: int, data: memoryview, offset: int) -> int:
        written[0] += len(data)
        if written[0] > 50_000:
            raise OSError(code, os.strerror(code))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fail_later)
    expected = (
        "no space left in .*nothing was kept"
        if code == errno.ENOSPC
        else r"cannot write to .*model\.safetensors: Input/output"
    )
    with pytest.raises(PackageError, match=expected):
        write(source, tmp_path / "new" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_damaged_checkpoint_leaves_nothing(source: Source, tmp_path: Path) -> None:
    ref = source.checkpoint.tensors["lm_head.weight"]
    with ref.file.open("r+b") as file:
        file.truncate(ref.offset + 100)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        write(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
