"""Building a folder under a temporary name and putting it in place in one step.

The temporary folder is a sibling of the final one, ``.NAME.tmp-PID-xxxxxxxx``, so both are on one file system
and the last step is a rename. Its owner holds a lock on it as long as it lives; what dead owners left is
removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h


class Staging:
    """A temporary folder that becomes ``output``, or disappears.

    Attributes:
        output: absolute final path; symbolic links are resolved.
        folder: the temporary folder, exists after :meth:`create`.
    """

    def __init__(self, output: Path) -> None:
        self.output = output.absolute().resolve()
        self.folder = self._sibling("tmp")
        self._lock: int | None = None
        self._made_parents: list[Path] = []

    def _sibling(self, kind: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")

    def create(self) -> None:
        """Make the folder, and parents of ``output`` that do not exist, after removing what dead owners
        left."""
        missing = [parent for parent in self.output.parents if not parent.exists()]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._made_parents = missing
        clean_leftovers(self.output)
        self.folder.mkdir()
        self._lock = _lock_folder(self.folder)

    def commit(self, replace: bool) -> None:
        """Put the folder in place of ``output`` in one step, which a crash cannot split, then delete the old
        one.

        Args:
            replace: whether an existing ``output`` may be replaced.

        Raises:
            FileExistsError: ``output`` exists and ``replace`` is false. The temporary folder is still there.
        """
        _sync_folders(self.folder)
        if replace and self.output.exists():
            if not _rename(self.folder, self.output, _RENAME_EXCHANGE):
                self._replace_in_two_steps()
        elif not _rename(self.folder, self.output, _RENAME_NOREPLACE):
            if self.output.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.output))
            self.folder.rename(self.output)
        self._made_parents = []
        _sync(self.output.parent)
        self.discard()  # after an exchange the temporary name is that of the old folder

    def _replace_in_two_steps(self) -> None:
        """For file systems that cannot exchange (NFS). Killed in between, the next run puts the old folder
        back."""
        old = self._sibling("old")
        self.output.rename(old)
        self.folder.rename(self.output)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the temporary folder, if there is one, and the parents made for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self._made_parents:
            with contextlib.suppress(OSError):  # no longer empty, or gone: not ours to remove
                parent.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def clean_leftovers(output: Path) -> None:
    """Remove temporary folders of ``output`` whose owner is dead, and put back an old folder it had set
    aside."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.(tmp|old)-([0-9]+)-[0-9a-f]{{8}}")
    for entry in sorted(output.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if not match or entry.is_symlink() or not entry.is_dir() or _is_alive(int(match[2])):
            continue
        # locked: alive on another machine or in another container, whose process ids mean nothing here
        if (lock := _lock_folder(entry)) is None:
            continue
        try:
            if match[1] == "old" and not output.exists():
                entry.rename(output)
            else:
                shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(lock)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _lock_folder(folder: Path) -> int | None:
    """Open and lock a folder; None if another process holds the lock, or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _rename(source: Path, target: Path, flag: int) -> bool:
    """``renameat2``; False if this system or file system does not know the flag."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    if library.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _sync_folders(folder: Path) -> None:
    for name, _, _ in os.walk(folder):
        _sync(Path(name))


@contextlib.contextmanager
def exit_on_termination() -> Iterator[None]:
    """While the block runs, let SIGTERM and SIGHUP unwind it like an exception, so that it can clean up.

    Signals that the program handles or ignores itself are left alone, as are all of them outside the main
    thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in taken:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
