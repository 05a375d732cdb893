from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.errors import PackageError
from q2export.package.hashing import fingerprint_file
from q2export.package.manifest import MANIFEST_NAME, SCHEMA_VERSION, FileRecord
from q2export.package.reader import read_package
from q2export.package.writer import PackageWriter
from tests.package.packages import graph_text, make_manifest, write_package

LARGE = (64 << 20) + 12345


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"w" * 5000)
    return write_package(tmp_path / "package", shard=shard)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_opens(package: Path) -> None:
    for check in ("none", "fast", "full"):
        opened = read_package(package, check)
        assert opened.folder == package
        assert opened.path("tokenizer/tokenizer.json").read_text() == "{}"
        assert opened.has("model.onnx")
        assert not opened.has("rank0.engine")
        assert not opened.has(MANIFEST_NAME)
    with pytest.raises(PackageError, match=r"lists no 'rank0\.engine'; rebuild with: q2export build "):
        opened.path("rank0.engine")


def test_can_be_moved(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "else where" / "p"
    moved.parent.mkdir()
    package.rename(moved)
    assert str(tmp_path) not in (moved / MANIFEST_NAME).read_text()
    assert read_package(moved, "full").folder == moved
    monkeypatch.chdir(moved.parent)
    assert read_package("p").path("model.onnx") == moved / "model.onnx"
    (tmp_path / "link").symlink_to(moved)
    assert read_package(tmp_path / "link").has("model.onnx")


def test_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"/nothing is not an engine package: it is not a folder"):
        read_package(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for too_long in (tmp_path / ("d" * 300), tmp_path / "/".join(["d" * 200] * 21)):
        with pytest.raises(PackageError, match=r"d+ is not an engine package: it is not a folder"):
            read_package(too_long)
    with pytest.raises(PackageError, match=r"/file is not an engine package: it is not a folder"):
        read_package(tmp_path / "file")
    with pytest.raises(PackageError, match=r"it holds no manifest\.json; make one with q2export build"):
        read_package(tmp_path)
    os.mkfifo(tmp_path / MANIFEST_NAME)  # reading it would hang
    with pytest.raises(PackageError, match=r"manifest\.json: expected a regular file"):
        read_package(tmp_path)


@pytest.mark.parametrize("check", ["fast", "full"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), r"expected 21 bytes, found no such file\."),
        (lambda p: p.write_text("graphs"), r"expected 21 bytes, found 6 bytes\."),
        (lambda p: p.write_text(graph_text("grapf")), r"expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}\."),
        (lambda p: (p.unlink(), p.mkdir()), r"expected a regular file, found something else\."),
        (lambda p: (p.unlink(), os.mkfifo(p)), r"expected a regular file, found something else\."),
        (
            lambda p: (p.unlink(), p.symlink_to("/etc/passwd")),
            r"expected a file inside .*a link to /etc/passwd",
        ),
        (lambda p: (p.unlink(), p.symlink_to(p.name)), r"model\.onnx is not the file"),
    ],
)
def test_damage_names_file_both_sides_and_the_way_out(
    package: Path, damage: Any, message: str, check: Any
) -> None:
    damage(package / "model.onnx")
    with pytest.raises(PackageError, match=message) as caught:
        read_package(package, check)
    text = str(caught.value)
    assert text.startswith(f"{package}/model.onnx is not the file manifest.json describes")
    assert "Restore it, or rebuild with: q2export build --model Qwen/Qwen2-0.5B" in text
    assert read_package(package, "none").manifest.engine.file == "model.onnx"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja"])
def test_text_files_that_were_not_built_are_refused(package: Path, name: str) -> None:
    for make in (Path.touch, os.mkfifo):
        make(package / name)
        with pytest.raises(PackageError, match=rf"{name}: manifest\.json lists no such file"):
            read_package(package)
        (package / name).unlink()
    read_package(package)


def test_text_files_have_a_size_that_can_be(package: Path) -> None:
    with (package / "tokenizer.json").open("wb") as file:
        file.truncate(LARGE)
    files = json.loads((package / MANIFEST_NAME).read_text())["files"]
    record = {
        **files["model.onnx"],
        "bytes": LARGE,
        "fingerprint": fingerprint_file(package / "tokenizer.json"),
    }
    edit_manifest(package, files={**files, "tokenizer.json": record})
    with pytest.raises(PackageError, match=r"tokenizer\.json: 67121209 bytes, expected at most 67108864"):
        read_package(package)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", "../manifest.json", "manifest.json"])
def test_the_manifest_is_a_file_of_the_package(package: Path, target: str) -> None:
    (package / MANIFEST_NAME).rename(package.parent / MANIFEST_NAME)
    (package / MANIFEST_NAME).symlink_to(target)
    with pytest.raises(PackageError, match=r"manifest\.json: (expected a file inside|cannot be read)"):
        read_package(package)


def test_a_giant_manifest_is_not_read(package: Path) -> None:
    with (package / MANIFEST_NAME).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(PackageError, match=r"1073741824 bytes, expected at most 4194304; is this the right"):
        read_package(package)


def test_links_within_the_package_are_fine(package: Path) -> None:
    (package / "model.onnx").rename(package / "real")
    (package / "model.onnx").symlink_to("real")
    read_package(package)


def test_checkpoint_edited_in_place_is_named(package: Path) -> None:
    shard = package.parent / "model.safetensors"
    if read_package(package).manifest.weights.files[0].placement != "hardlink":
        pytest.skip("this file system clones files instead of linking them")
    with shard.open("r+b") as file:
        file.write(b"W")
    with pytest.raises(PackageError, match=r"shares its data with model\.safetensors of the checkpoint"):
        read_package(package)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a sparse file above the limit of what is always hashed."""
    folder = tmp_path_factory.mktemp("large")
    with (folder / "s.safetensors").open("wb") as file:
        file.truncate(LARGE)
    with PackageWriter.open(folder / "p", placement="copy") as writer:
        writer.add_text("model.onnx", graph_text())
        writer.place_weights(folder / "s.safetensors", "s.safetensors")
        writer.write_manifest(make_manifest(writer.files, writer.weights))
    return folder / "p"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_large_files_are_sampled_or_read_whole(large: Path) -> None:
    read_package(large, "full")
    unsampled = 4096 + 10  # behind the first block, far before the second
    flip(large / "s.safetensors", unsampled)
    read_package(large, "fast")
    with pytest.raises(PackageError, match=r"s\.safetensors .* expected sha256"):
        read_package(large, "full")
    flip(large / "s.safetensors", unsampled)
    flip(large / "s.safetensors", LARGE - 1)
    with pytest.raises(PackageError, match=r"s\.safetensors .* expected fingerprint"):
        read_package(large, "fast")
    flip(large / "s.safetensors", LARGE - 1)
    read_package(large, "full")


def test_file_without_sha256_is_sampled_in_full_too(tmp_path: Path) -> None:
    shard = tmp_path / "s.safetensors"
    with shard.open("wb") as file:
        file.truncate(LARGE)
    package = write_package(tmp_path / "p", shard=shard)
    record = read_package(package, "full").manifest.files["weights/s.safetensors"]
    if record.sha256 is not None:
        pytest.skip("no links on this file system")
    assert record == FileRecord(LARGE, None, fingerprint_file(shard), record.unhashed_reason)
    flip(package / "weights/s.safetensors", 0)
    with pytest.raises(PackageError, match="expected fingerprint"):
        read_package(package, "full")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_manifest_cannot_reach_outside(package: Path, name: str) -> None:
    (package.parent / "outside").write_text("graph")
    files = json.loads((package / MANIFEST_NAME).read_text())["files"]
    edit_manifest(package, files={**files, name: files["model.onnx"]})
    for check in ("none", "fast"):
        with pytest.raises(PackageError, match=r"manifest\.json: .* is not a valid path of a package file"):
            read_package(package, check)


NAMES = st.text(st.characters(codec="utf-8"), max_size=300) | st.text("./\\a\0", max_size=8)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("hostile") / "p")


@given(name=NAMES, size=st.integers(-1, 1 << 64), schema=st.integers().filter(lambda n: n != SCHEMA_VERSION))
def test_hostile_names_and_sizes(hostile: Path, name: str, size: int, schema: int) -> None:
    original = (hostile / MANIFEST_NAME).read_text()
    files = json.loads(original)["files"]
    for changes in (
        {"files": {**files, name: {**files["model.onnx"], "bytes": size}}},
        {"schema_version": schema},
    ):
        edit_manifest(hostile, **changes)
        with pytest.raises(PackageError):
            read_package(hostile)
        (hostile / MANIFEST_NAME).write_text(original)
