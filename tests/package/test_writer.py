from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from q2export.errors import PackageError
from q2export.package.manifest import MANIFEST_NAME
from q2export.package.output import check_output
from q2export.package.reader import read_package
from q2export.package.writer import PackageWriter, written_files
from tests.package.packages import graph_text, make_manifest, write_package


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": 1}\r\n')
    with PackageWriter.open(tmp_path / "out") as writer:
        assert writer.folder.parent == tmp_path
        assert not writer.output.exists()
        writer.add_bytes("model.onnx", graph_text().encode())
        writer.add_text("sub/chat_template.jinja", "é\r\n")
        writer.add_file("config.json", tmp_path / "config.json")
        with writer.open_hashed("weights.safetensors") as file:
            file.write(b"abc")
            file.write(b"def")
        (writer.folder / "by_another_program").write_text("x")
        writer.add_written("by_another_program")
        writer.write_manifest(make_manifest(writer.files))
    package = read_package(tmp_path / "out", "full")
    assert package.path("sub/chat_template.jinja").read_bytes() == "é\r\n".encode()
    assert package.path("config.json").read_bytes() == b'{"a": 1}\r\n'
    assert package.manifest.files["weights.safetensors"].bytes == 6
    assert sorted(os.listdir(tmp_path)) == ["config.json", "out"]


def test_manifest_can_be_written_again(tmp_path: Path) -> None:
    with PackageWriter.open(tmp_path / "out") as writer:
        writer.add_text("model.onnx", graph_text())
        writer.write_manifest(make_manifest(writer.files))
        assert read_package(writer.folder).has("model.onnx")  # the parity check opens it in place
        writer.add_text("parity.json", "{}")
        writer.write_manifest(make_manifest(writer.files))
    assert read_package(tmp_path / "out").has("parity.json")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_any_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), PackageWriter.open(tmp_path / "new/out") as writer:
        writer.add_text("model.onnx", graph_text())
        with writer.open_hashed("weights") as file:
            file.write(b"abc")
            raise error
    assert os.listdir(tmp_path) == []


def test_interrupted_file_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PackageWriter.open(tmp_path / "out") as writer:
        try:
            with writer.open_hashed("weights"):
                raise ValueError
        except ValueError:
            assert dict(writer.files) == {}
        raise KeyError


def forget(writer: PackageWriter) -> None:
    writer.add_text("model.onnx", graph_text())


def describe_too_early(writer: PackageWriter) -> None:
    writer.add_text("model.onnx", graph_text())
    writer.write_manifest(make_manifest(writer.files))
    writer.add_text("late.json", "{}")


def describe_too_little(writer: PackageWriter) -> None:
    writer.add_text("model.onnx", graph_text())
    record = dict(writer.files)
    writer.add_text("other.json", "{}")
    writer.write_manifest(make_manifest(record))


def drop_a_stray_file(writer: PackageWriter) -> None:
    writer.add_text("model.onnx", graph_text())
    (writer.folder / "stray.tmp").touch()
    writer.write_manifest(make_manifest(writer.files))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (forget, r"manifest\.json was not written"),
        (describe_too_early, r"does not describe the files written: late\.json"),
        (describe_too_little, r"differs from the files written: other\.json"),
        (drop_a_stray_file, r"does not describe the files written: stray\.tmp"),
        (lambda w: w.add_text("../x", ""), r"'\.\./x' is not a valid path"),
        (lambda w: w.add_text(MANIFEST_NAME, ""), r"'manifest\.json' is not a valid path"),
        (lambda w: (w.add_text("a", ""), w.add_text("a", "")), r"a is written twice"),
    ],
)
def test_incomplete_packages_are_refused(
    tmp_path: Path, work: Callable[[PackageWriter], None], message: str
) -> None:
    with pytest.raises(PackageError, match=message), PackageWriter.open(tmp_path / "out") as writer:
        work(writer)
    assert os.listdir(tmp_path) == []


def test_existing_output(tmp_path: Path) -> None:
    write_package(tmp_path / "out", text="first")
    with pytest.raises(PackageError, match=r"/out exists already; choose another output, or overwrite it"):
        write_package(tmp_path / "out", text="second")
    assert read_package(tmp_path / "out").path("model.onnx").read_text() == graph_text("first")
    write_package(tmp_path / "out", text="second", overwrite=True)
    assert read_package(tmp_path / "out").path("model.onnx").read_text() == graph_text("second")
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_spares_what_is_not_a_package(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check_output(out, True, written_files)  # empty: nothing to lose
    with pytest.raises(PackageError, match="exists already"):
        check_output(out, False, written_files)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(PackageError, match=r"/out is not replaced: it is not a q2export package"):
        write_package(out, overwrite=True)
    for text in ("{}", "[]", '{"tool": {"name": "other"}, "files": {}}', '{"tool": {"name": "q2export"}}'):
        (out / MANIFEST_NAME).write_text(text)
        with pytest.raises(PackageError, match="is not replaced"):
            write_package(out, overwrite=True)
    (out / MANIFEST_NAME).write_text('{"tool": {"name": "q2export"}, "files": {}, "schema_version": 0}')
    with pytest.raises(PackageError, match=r"it holds 'thesis\.txt', not made by q2export"):
        write_package(out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    write_package(out, overwrite=True)  # a package of an older schema may be replaced
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match=r"/file is not replaced"):
        write_package(tmp_path / "file", overwrite=True)


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="exists already"), PackageWriter.open(tmp_path / "out") as writer:
        writer.add_text("model.onnx", "late")
        writer.write_manifest(make_manifest(writer.files))
        write_package(tmp_path / "out", text="early")
    assert read_package(tmp_path / "out").path("model.onnx").read_text() == graph_text("early")
    assert os.listdir(tmp_path) == ["out"]


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no space left in .* writing out; nothing was kept"):  # noqa: SIM117
        with PackageWriter.open(tmp_path / "new/out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_a_file_beyond_the_limit_is_named(tmp_path: Path) -> None:
    """``ulimit -f``: the system answers EFBIG, naming no file; a limit cannot be raised again."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(PackageError, match=r"^out/weights is larger than a file may be in .*ulimit -f"):  # noqa: SIM117
            with PackageWriter.open(tmp_path / "new/out") as writer, writer.open_hashed("weights") as file:
                for _ in range(3):
                    file.write(bytes(1 << 19))

    assert run_until(1 << 30, signal.SIGTERM, work) == (False, 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/".join(["d" * 200] * 20), r"the path of the output takes \d+ bytes, expected at most 3840"),
        ("é" * 111, r"the name of the output takes 222 bytes, expected at most 220: choose a shorter one"),
    ],
)
def test_an_output_too_long_for_the_system(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        write_package(tmp_path / path)
    assert os.listdir(tmp_path) == []
    write_package(tmp_path / ("d" * 200) / ("é" * 110))
    read_package(tmp_path / ("d" * 200) / ("é" * 110))


def test_unwritable_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match=r"cannot write to .*/file"):
        write_package(tmp_path / "file/out")


def run_until(event: int, number: signal.Signals, work: Callable[[], object]) -> tuple[bool, int]:
    """Run ``work`` in a child that sends itself a signal at its ``event``-th audited operation (PEP 578).

    Returns whether it got that far, and the exit status. Opening, linking, renaming and removing files and
    loading ``renameat2`` are audited, so counting ``event`` up visits every moment that differs on disk.
    """
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(name: str, _: object) -> None:
            nonlocal seen
            if name.split(".")[0] in ("open", "os", "shutil", "ctypes") and name != "os.kill":
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), number)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0 if seen < event else 2
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(wait_status)
    return status != 0, status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, replaces: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # matters when the power fails, not when a process dies
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"w" * 100)
    moments, outcomes = 0, set()
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        if replaces:
            write_package(folder / "out", text="old")
        work = lambda out=folder / "out": write_package(out, text="new", overwrite=replaces, shard=shard)  # noqa: E731
        killed, status = run_until(moments + 1, number, work)
        if not killed:
            break
        assert status in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)
        found = None
        if (folder / "out").exists():
            found = read_package(folder / "out", "full").path("model.onnx").read_text()
        assert found in (graph_text("new"), graph_text("old") if replaces else None)
        outcomes.add(found)
        again = "newer" if found else "new"
        write_package(folder / "out", text=again, overwrite=found is not None, shard=shard)
        assert read_package(folder / "out", "full").path("model.onnx").read_text() == graph_text(again)
        assert os.listdir(folder) == ["out"]  # and nothing is left of the killed one
        moments += 1
    assert moments > 30
    assert len(outcomes) == 2  # both sides of the rename were visited
    assert read_package(folder / "out", "full").path("model.onnx").read_text() == graph_text("new")


def test_termination_while_writing_cleans_up(tmp_path: Path) -> None:
    def work() -> None:
        with PackageWriter.open(tmp_path / "new/out") as writer:
            writer.add_text("model.onnx", graph_text())
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    _, status = run_until(-1, signal.SIGTERM, work)
    assert status == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []
