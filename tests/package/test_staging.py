from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from q2export.package import staging
from q2export.package.staging import Staging, clean_leftovers, exit_on_termination


def dead_pid() -> int:
    """The id of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def leftover(parent: Path, pid: int, kind: str = "tmp", name: str = "out") -> Path:
    folder = parent / f".{name}.{kind}-{pid}-0123abcd"
    folder.mkdir()
    (folder / "x").touch()
    return folder


def test_commit_and_discard(tmp_path: Path) -> None:
    first = Staging(tmp_path / "a/b/out")
    first.create()
    assert first.folder.parent == tmp_path / "a/b"
    first.discard()
    assert list(tmp_path.iterdir()) == []  # the parents it made are gone too
    first.create()
    (first.folder / "x").write_text("1")
    first.commit(replace=False)
    assert (tmp_path / "a/b/out/x").read_text() == "1"
    assert os.listdir(tmp_path / "a/b") == ["out"]


def test_made_parents_survive_when_someone_uses_them(tmp_path: Path) -> None:
    one = Staging(tmp_path / "a/out")
    one.create()
    (tmp_path / "a/other").touch()
    one.discard()
    assert os.listdir(tmp_path / "a") == ["other"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        one = Staging(tmp_path / "out")
        one.create()
        one.commit(replace=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("two_steps", [False, True])
def test_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_steps: bool) -> None:
    if two_steps:
        monkeypatch.setattr(staging, "_rename", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    one = Staging(tmp_path / "out")
    one.create()
    (one.folder / "new").touch()
    with pytest.raises(FileExistsError):
        one.commit(replace=False)
    assert os.listdir(tmp_path / "out") == ["old"]
    one.commit(replace=True)
    assert os.listdir(tmp_path / "out") == ["new"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("two_steps", [False, True])
def test_nothing_there_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_steps: bool) -> None:
    if two_steps:
        monkeypatch.setattr(staging, "_rename", lambda *_: False)
    one = Staging(tmp_path / "out")
    one.create()
    one.commit(replace=True)
    assert os.listdir(tmp_path) == ["out"]


def test_output_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/real")
    one = Staging(tmp_path / "out")
    assert one.output == tmp_path / "disk/real"
    one.create()
    one.commit(replace=False)
    assert (tmp_path / "out").is_dir()


def test_leftovers_of_the_dead_alone_are_removed(tmp_path: Path) -> None:
    dead = dead_pid()
    gone = leftover(tmp_path, dead)
    locked = tmp_path / f".out.tmp-{dead}-ffffffff"  # its owner lives in another container
    locked.mkdir()
    alive = leftover(tmp_path, os.getpid())
    other = leftover(tmp_path, dead, name="out2")
    strange = tmp_path / f".out.tmp-{dead}-xyz"
    strange.mkdir()
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        clean_leftovers(tmp_path / "out")
    finally:
        os.close(descriptor)
    assert not gone.exists()
    assert all(path.exists() for path in (locked, alive, other, strange))


def test_old_folder_of_an_interrupted_replacement_comes_back(tmp_path: Path) -> None:
    old = leftover(tmp_path, dead_pid(), kind="old")
    clean_leftovers(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["x"]
    old.mkdir()
    clean_leftovers(tmp_path / "out")  # now there is an output: the old folder is garbage
    assert os.listdir(tmp_path) == ["out"]


def test_a_live_owner_holds_its_lock(tmp_path: Path) -> None:
    one = Staging(tmp_path / "out")
    one.create()
    pid = os.fork()
    if pid == 0:
        staging.os.kill = lambda *_: (_ for _ in ()).throw(ProcessLookupError)  # type: ignore[assignment]
        clean_leftovers(tmp_path / "out")
        os._exit(0)
    os.waitpid(pid, 0)
    assert one.folder.exists()
    one.discard()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_unwinds(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_termination():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_handlers_of_the_program_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with exit_on_termination():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_take_no_signals() -> None:
    seen = []

    def work() -> None:
        with exit_on_termination():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
