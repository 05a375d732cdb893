"""Opening an engine package: the manifest first, then every file against it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from q2export.contracts.progress import Advance, progress_bar
from q2export.errors import PackageError
from q2export.package.graph_check import check_graph
from q2export.package.hashing import fingerprint_file, hash_file
from q2export.package.manifest import (
    ALWAYS_HASHED_BYTES,
    GRAPH_SUFFIX,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_TEXT_BYTES,
    TEXT_FILES,
    FileRecord,
    Manifest,
)
from q2export.package.rebuild import rebuild_command
from q2export.strict.codec import to_plain
from q2export.strict.json import read_object

Check = Literal["none", "fast", "full"]


@dataclass(frozen=True)
class Package:
    """An engine package whose manifest, and as much of the rest as was asked for, is in order.

    Attributes:
        folder: absolute path of the package.
    """

    folder: Path
    manifest: Manifest

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file ``name``."""
        return name in self.manifest.files

    def path(self, name: str) -> Path:
        """Absolute path of a file of the package.

        Raises:
            PackageError: the manifest does not list it.
        """
        if not self.has(name):
            raise PackageError(
                f"{self.folder}: {MANIFEST_NAME} lists no {name!r}; rebuild with: {self.rebuild_command()}"
            )
        return self.folder / name

    def rebuild_command(self) -> str:
        """The command line that builds this package again, in place."""
        return rebuild_command(to_plain(self.manifest), self.folder)


def read_package(folder: str | Path, check: Check = "fast") -> Package:
    """Read the manifest of a package and check its files.

    Args:
        folder: the package.
        check: ``"fast"`` checks presence and size of every file, SHA-256 of those up to 64 MiB and a
            fingerprint of 64 sampled blocks of larger ones. ``"full"`` computes SHA-256 of all files that
            have one on record. Both refuse a graph that is not q2export's, see
            :mod:`q2export.package.graph_check`. ``"none"`` checks the manifest alone: for packages whose
            origin is known.

    Raises:
        PackageError: not a package, another schema version, a malformed manifest, or a file that is missing,
            leads out of the folder or differs; the message names it, both sides and the command that
            rebuilds.
    """
    folder = Path(folder).absolute()
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        problem = "holds no manifest.json" if os.path.isdir(folder) else "is not a folder"
        raise PackageError(f"{folder} is not an engine package: it {problem}; make one with q2export build")
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as problem:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise PackageError(f"{path}: cannot be read: {problem}") from None
    if not real.is_relative_to(folder.resolve()):
        raise PackageError(f"{path}: expected a file inside the package, found a link to {real}")
    package = Package(
        folder, Manifest.from_dict(read_object(path, MAX_MANIFEST_BYTES, PackageError), str(path))
    )
    if check == "none":
        return package
    _check_texts(package)
    for name, record in package.manifest.files.items():
        _check_stat(package, name, record)
    records = package.manifest.files.values()
    total = sum(record.bytes for record in records if record.sha256 is not None)
    with progress_bar("checking package", total, show=None if check == "full" else False) as advance:
        for name, record in package.manifest.files.items():
            _check_data(package, name, record, check, advance)
    sizes = {name: record.bytes for name, record in package.manifest.files.items()}
    for name in sizes:
        if name.endswith(GRAPH_SUFFIX):
            check_graph(folder / name, sizes, package.rebuild_command())
    return package


def _check_texts(package: Package) -> None:
    """What is read because of its name must be what was built, and of a size that can be."""
    for name in ("config.json", *TEXT_FILES):
        record = package.manifest.files.get(name)
        if record is None and os.path.lexists(package.folder / name):
            raise PackageError(
                f"{package.folder / name}: {MANIFEST_NAME} lists no such file, and it would change the text; "
                "remove it"
            )
        if record is not None and record.bytes > MAX_TEXT_BYTES:
            raise PackageError(
                f"{package.folder / name}: {record.bytes} bytes, expected at most {MAX_TEXT_BYTES}"
            )


def _check_stat(package: Package, name: str, record: FileRecord) -> None:
    path = package.folder / name
    try:
        if not path.resolve().is_relative_to(package.folder.resolve()):
            raise _damaged(package, name, "a file inside the package", f"a link to {path.resolve()}")
        status = path.stat()
    except FileNotFoundError:
        raise _damaged(package, name, f"{record.bytes} bytes", "no such file") from None
    except (OSError, RuntimeError) as problem:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise _damaged(package, name, f"{record.bytes} bytes", str(problem)) from None
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(package, name, "a regular file", "something else")
    if status.st_size != record.bytes:
        raise _damaged(package, name, f"{record.bytes} bytes", f"{status.st_size} bytes")


def _check_data(package: Package, name: str, record: FileRecord, check: Check, advance: Advance) -> None:
    path = package.folder / name
    whole = record.bytes <= ALWAYS_HASHED_BYTES or check == "full"
    try:
        if whole and record.sha256 is not None:
            kind, expected, found = "sha256", record.sha256, hash_file(path, advance)
        else:
            kind, expected, found = "fingerprint", record.fingerprint, fingerprint_file(path)
    except OSError as problem:
        raise _damaged(package, name, "readable data", problem.strerror or str(problem)) from None
    if found != expected:
        raise _damaged(package, name, f"{kind} {expected}", found)


def _damaged(package: Package, name: str, expected: str, found: str) -> PackageError:
    shared = ""
    for weight in package.manifest.weights.files:
        if weight.path == name and weight.placement == "hardlink":
            sources = ", ".join(weight.sources)
            shared = f" It shares its data with {sources} of the checkpoint: was that edited in place?"
    return PackageError(
        f"{package.folder / name} is not the file {MANIFEST_NAME} describes: expected {expected}, "
        f"found {found}.{shared} Restore it, or rebuild with: {package.rebuild_command()}"
    )
