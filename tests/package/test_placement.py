from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from q2export.errors import PackageError
from q2export.package import placement
from q2export.package.placement import (
    PlacementMode,
    copy_file,
    describe_filesystem,
    link_file,
    require_free_space,
)
from q2export.package.writer import PackageWriter
from tests.package.packages import make_manifest


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "model-00001-of-00001.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.fcntl, "ioctl", failing(errno.EOPNOTSUPP))


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch, no_reflink: None) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))


@pytest.mark.usefixtures("no_reflink")
def test_hard_link_where_the_file_system_cannot_clone(tmp_path: Path, shard: Path) -> None:
    assert link_file(shard, tmp_path / "t") == "hardlink"
    assert (tmp_path / "t").stat().st_ino == shard.stat().st_ino


@pytest.mark.parametrize("mode", ["auto", "link", "copy"])
def test_reflink_first(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, mode: PlacementMode
) -> None:
    def clone(write: int, request: int, read: int) -> None:
        assert request == 0x40049409
        os.write(write, os.read(read, 1 << 20))

    monkeypatch.setattr(placement.fcntl, "ioctl", clone)
    assert link_file(shard, tmp_path / "t", mode) == "reflink"
    assert (tmp_path / "t").read_bytes() == shard.read_bytes()
    assert shard.stat().st_nlink == 1


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
@pytest.mark.usefixtures("no_reflink")
def test_failed_links_leave_nothing(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "link", failing(code))
    assert link_file(shard, tmp_path / "t") is None
    assert not (tmp_path / "t").exists()


def test_other_failures_are_not_hidden(tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.fcntl, "ioctl", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        link_file(shard, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_copy(tmp_path: Path) -> None:
    source = tmp_path / "s"
    data = os.urandom((4 << 20) + 13)
    source.write_bytes(data)
    advanced: list[int] = []
    digest = copy_file(source, tmp_path / "t", advanced.append)
    assert (tmp_path / "t").read_bytes() == data
    assert (digest.bytes, digest.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert advanced == [4 << 20, 13]


@pytest.mark.usefixtures("no_reflink")
def test_hub_cache_symlinks_lead_to_the_real_file(tmp_path: Path) -> None:
    blob = tmp_path / "cache/blobs/0123"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"data")
    link = tmp_path / "cache/snapshots/main/model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/0123")
    with PackageWriter.open(tmp_path / "out") as writer:
        writer.place_weights(link, "weights/model.safetensors")
        (weight,) = writer.weights
        placed = writer.folder / weight.path
        assert not placed.is_symlink()
        assert placed.stat().st_ino == blob.stat().st_ino
        assert (weight.placement, weight.sources, weight.bytes) == ("hardlink", ("model.safetensors",), 4)
        assert writer.files[weight.path].sha256 == hashlib.sha256(b"data").hexdigest()
        writer.add_text("model.onnx", "graph")
        writer.write_manifest(make_manifest(writer.files, (weight,)))


@pytest.mark.usefixtures("no_links")
def test_copied_where_linking_is_impossible(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(KeyError), PackageWriter.open(tmp_path / "out") as writer:
        writer.place_weights(shard, "a")
        assert [weight.placement for weight in writer.weights] == ["copy"]
        raise KeyError
    with pytest.raises(KeyError), PackageWriter.open(tmp_path / "out", placement="link") as writer:
        with pytest.raises(PackageError, match=r"cannot be linked into .*put the package on the file system"):
            writer.place_weights(shard, "b")
        assert not (writer.folder / "b").exists()
        raise KeyError


def test_copy_on_request(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(KeyError), PackageWriter.open(tmp_path / "out", placement="copy") as writer:
        writer.place_weights(shard, "a")
        assert [weight.placement for weight in writer.weights] == ["copy"]
        assert shard.stat().st_nlink == 1
        raise KeyError


def test_large_links_are_not_read(tmp_path: Path) -> None:
    shard = tmp_path / "big.safetensors"
    with shard.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(KeyError), PackageWriter.open(tmp_path / "out") as writer:
        writer.place_weights(shard, "a")
        assert writer.files["a"].sha256 is None
        assert "without reading" in (writer.files["a"].unhashed_reason or "")
        writer.place_weights(shard, "b", sha256="c" * 64)
        assert (writer.files["b"].sha256, writer.files["b"].unhashed_reason) == ("c" * 64, None)
        assert writer.files["a"].fingerprint == writer.files["b"].fingerprint
        raise KeyError


@pytest.mark.usefixtures("no_links")
def test_copy_needs_space(tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 6999))
    with pytest.raises(PackageError, match=r"not enough space in .* for copies of the weights"):  # noqa: SIM117
        with PackageWriter.open(tmp_path / "out") as writer:
            writer.expect_weights([shard])
    assert [path.name for path in tmp_path.iterdir()] == [shard.name]


@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "dangling"])
def test_what_is_no_shard(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to("loop" if kind == "loop" else "nowhere")
    with PackageWriter.open(tmp_path / "out") as writer:
        for place in (lambda: writer.place_weights(path, "a"), lambda: writer.add_file("b", path)):
            with pytest.raises(PackageError, match=rf"{kind}: (cannot be put|expected a regular file)"):
                place()
        writer.add_text("model.onnx", "graph")
        writer.write_manifest(make_manifest(writer.files))


def test_space_and_names() -> None:
    require_free_space(Path("/"), 0, "nothing")
    with pytest.raises(PackageError, match=r"not enough space in / \(/, \w+\) for x: 1000000000\.00 GB"):
        require_free_space(Path("/"), 10**18, "x")
    assert describe_filesystem(Path("/proc/self/mounts")) == "/proc, proc"


@pytest.fixture
def other_filesystem(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second writable file system at /dev/shm")
    folder = memory / f"q2export-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_across_file_systems_for_real(other_filesystem: Path, shard: Path) -> None:
    with pytest.raises(KeyError), PackageWriter.open(other_filesystem / "out", placement="link") as writer:
        with pytest.raises(PackageError, match=r"cannot be linked into /dev/shm/.*\(/dev/shm, tmpfs\)"):
            writer.place_weights(shard, "a")
        raise KeyError
    with pytest.raises(KeyError), PackageWriter.open(other_filesystem / "out") as writer:
        writer.place_weights(shard, "a")
        assert [weight.placement for weight in writer.weights] == ["copy"]
        raise KeyError
