"""Bringing a file of the checkpoint into a package, without copying its bytes where that may and can be.

In order of preference:

- ``reflink``: a clone that shares blocks until either side is written (Btrfs, XFS, bcachefs, ZFS).
- ``hardlink``: a second name of the same inode. Editing the checkpoint *in place* therefore changes the
  package too (its checksums notice); replacing or deleting files of the checkpoint does not.
- ``copy``: where neither works, which between two file systems is always.

External data with more than one hard link are read by ONNX Runtime and TensorRT; ``onnx.load``,
``onnx.checker``, onnx-ir, and with them polygraphy and graphsurgeon, refuse them (onnx 1.23, onnx-ir 1.1).
``onnx.load`` refuses a symbolic link as well, and ONNX Runtime one that leaves the folder. So only a file of
its own opens everywhere.

Symbolic links are resolved first, so the snapshots of a Hugging Face hub cache (links into ``../../blobs``)
work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from q2export.contracts.progress import Advance, silent
from q2export.errors import PackageError
from q2export.package.hashing import CHUNK_BYTES, FileDigest, HashingWriter

PlacementMode = Literal["auto", "link", "copy"]
"""``copy``: a file of its own, a reflink or else a copy. ``link``: a reflink or else a hard link, or an
error. ``auto``: a reflink, else a hard link, else a copy."""
LinkKind = Literal["reflink", "hardlink"]

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# What a file system answers that cannot link (this file, across these mounts, that often, for this user).
_CANNOT = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}
_CANNOT |= {errno.EPERM, errno.EACCES, errno.EMLINK}


def link_file(source: Path, target: Path, mode: PlacementMode = "auto") -> LinkKind | None:
    """Give the data of ``source``, a real file, a second name ``target``; None if the file system cannot.

    In mode ``copy`` only a reflink is tried.

    Raises:
        OSError: for any other reason (disk full, ``target`` exists).
    """
    attempts: tuple[tuple[LinkKind, Callable[[Path, Path], None]], ...] = (
        ("reflink", _reflink),
        ("hardlink", os.link),
    )
    for kind, attempt in attempts[:1] if mode == "copy" else attempts:
        try:
            attempt(source, target)
        except OSError as problem:
            if problem.errno not in _CANNOT:
                raise
        else:
            return kind
    return None


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError:
            target.unlink()
            raise


def copy_file(source: Path, target: Path, advance: Advance = silent) -> FileDigest:
    """Copy ``source`` to the new file ``target`` in chunks of 4 MiB and return its digest."""
    with source.open("rb", buffering=0) as read, HashingWriter(target) as write:
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        while count := read.readinto(buffer):
            write.write(view[:count])
            advance(count)
    return write.result()


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to start writing what cannot fit.

    Args:
        folder: where it will be written. needed: bytes. purpose: ``"converted weights"``.

    Raises:
        PackageError: naming the file system, the bytes needed and those free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PackageError(
            f"not enough space in {folder} ({describe_filesystem(folder)}) for {purpose}: "
            f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; free some or write elsewhere"
        )


def describe_filesystem(path: Path) -> str:
    """Mount point and type of the file system of an existing path, ``"/data, ext4"``."""
    real = path.resolve()
    best, kind = Path("/"), "unknown type"
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"device {real.stat().st_dev}"
    for line in lines:
        _, point, mount_type, *_ = line.split(" ")
        mount = Path(point.replace("\\040", " "))
        # >= : a later mount on the same point hides the earlier one
        if real.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, mount_type
    return f"{best}, {kind}"
