"""An exported folder opens in the ONNX tools people have; what only links is said to cost that."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import q2export
from q2export.package import placement
from tests.helpers.checkpoints import tiny_config, write_checkpoint

gs = pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", tiny_config(), shards=2)


@pytest.fixture
def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(placement.fcntl, "ioctl", fail)


def polygraphy(*arguments: str) -> None:
    script = "import sys; from polygraphy.tools import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def read_with_graphsurgeon(file: Path) -> None:
    graph = gs.import_onnx(onnx.load(file))
    assert any(isinstance(one, gs.Constant) and one.values.size for one in graph.tensors().values())


def read_with_onnx_ir(file: Path) -> None:
    for value in ir.load(file).graph.initializers.values():
        assert value.const_value is not None and value.const_value.numpy().size


READERS: dict[str, Callable[[Path], object]] = {
    "onnx.load": onnx.load,
    "onnx.checker": lambda file: onnx.checker.check_model(str(file), full_check=True),
    "onnx-ir": read_with_onnx_ir,
    "graphsurgeon": read_with_graphsurgeon,
}


@pytest.mark.usefixtures("no_reflink")
def test_an_exported_folder_opens_everywhere(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="q2export"):
        file = q2export.export(checkpoint, tmp_path / "out").onnx
    assert "GB of weights: every ONNX tool opens a copy; weights 'link' shares" in caplog.text
    for read in READERS.values():
        read(file)
    polygraphy("inspect", "model", str(file), "--show", "layers", "weights")
    polygraphy("surgeon", "sanitize", str(file), "-o", str(tmp_path / "sanitized.onnx"))


@pytest.mark.usefixtures("no_reflink")
@pytest.mark.parametrize("reader", READERS)
def test_a_linked_folder_takes_no_space_and_not_all_tools_open_it(
    checkpoint: Path, tmp_path: Path, reader: str
) -> None:
    """The day these read hard links, linking can be the default."""
    result = q2export.export(checkpoint, tmp_path / "out", weights="link")
    placed = sorted((result.package / "weights").iterdir())
    assert [os.path.samefile(path, checkpoint / path.name) for path in placed] == [True, True]
    with pytest.raises(Exception, match="multiple hard links"):
        READERS[reader](result.onnx)


def test_copies_that_cannot_fit_are_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_reflink: None
) -> None:
    shards = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    monkeypatch.setattr(
        placement.shutil, "disk_usage", lambda _: placement.shutil._ntuple_diskusage(1, 1, max(shards) + 1)
    )
    with pytest.raises(q2export.errors.PackageError, match=r"not enough space in .* for copies"):
        q2export.export(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
