"""Digests of files: SHA-256 of everything, and a fingerprint of samples for files too large to read at each
load."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from q2export.contracts.progress import Advance, silent

CHUNK_BYTES = 4 << 20
_OVERLAP_BYTES = 1 << 20
SAMPLE_BYTES = 4096
SAMPLE_COUNT = 64


@dataclass(frozen=True)
class FileDigest:
    """Size of a file in bytes, its SHA-256 and its :func:`fingerprint_file`, both in hexadecimal."""

    bytes: int
    sha256: str
    fingerprint: str


def fingerprint_file(path: Path) -> str:
    """SHA-256 over the size (8 bytes, little endian) and 64 blocks of 4 KiB: first, last and 62 evenly
    spaced.

    At most 256 KiB are read, whatever the size. It catches truncation, a swapped file and most rewrites, not
    every flipped bit; only SHA-256 of the whole does.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        room = max(size - SAMPLE_BYTES, 0)
        offsets = {room * index // (SAMPLE_COUNT - 1) for index in range(SAMPLE_COUNT)}
        for offset in sorted(offsets):
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, offset))
    return digest.hexdigest()


def hash_file(path: Path, advance: Advance = silent) -> str:
    """SHA-256 of a whole file in hexadecimal, read in chunks of 4 MiB; ``advance`` is told the bytes read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
            advance(count)
    return digest.hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not: those of writing to a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class HashingWriter:
    """A new binary file that is hashed while it is written.

    A context manager. Once it is closed the data are on stable storage and :meth:`result` tells the digest.
    """

    def __init__(self, path: Path) -> None:
        """Create ``path``; raises FileExistsError if it is there already."""
        self._path = path
        self._file: BinaryIO = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(max_workers=1)
        self._bytes = 0
        self._digest: FileDigest | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data`` (C-contiguous) and return its length in bytes."""
        count = memoryview(data).nbytes
        with naming(self._path):
            if count < _OVERLAP_BYTES:
                self._sha256.update(data)
                self._file.write(data)
            else:  # hashing and writing take about as long and both release the GIL
                hashed = self._hasher.submit(self._sha256.update, data)
                try:
                    self._file.write(data)
                finally:
                    hashed.result()
        self._bytes += count
        return count

    def tell(self) -> int:
        """Bytes written so far."""
        return self._bytes

    def close(self) -> None:
        """Flush to stable storage and compute the digest."""
        if self._file.closed:
            return
        with naming(self._path), self._file, self._hasher:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._digest = FileDigest(self._bytes, self._sha256.hexdigest(), fingerprint_file(self._path))

    def result(self) -> FileDigest:
        """The digest of the closed file.

        Raises:
            RuntimeError: the file is still open, or an exception interrupted the writing.
        """
        if self._digest is None:
            raise RuntimeError(f"{self._path} is not complete")
        return self._digest

    def __enter__(self) -> HashingWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception without a digest."""
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # of what is still buffered: the first error is the one to report
                self._file.close()
            self._hasher.shutdown()
