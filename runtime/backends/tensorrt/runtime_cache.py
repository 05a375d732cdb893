"""The kernels that TensorRT-RTX compiles for the GPU at hand, kept in a file from one process to the next.

The file is in the user's cache: packages may be read-only, are shared between machines, and hold nothing that
their manifest does not list. It can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def runtime_cache_file(engine: Path, builder_version: str, gpu: str) -> Path | None:
    """Where the kernels of an engine are kept, for one version of the library and one kind of GPU.

    A rebuilt engine has the file of the one before: its kernels are replaced, and no file is left behind.
    None for a user who has no home.
    """
    of_user = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(of_user) if Path(of_user).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    key = "\0".join((str(engine.resolve()), builder_version, gpu))
    return folder / "q2export" / "tensorrt_rtx" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.cache"


class RuntimeCache:
    """An ``IRuntimeCache`` and its file. What goes wrong with the file costs time and nothing else."""

    def __init__(self, cache: Any, path: Path) -> None:
        """Read the file if there is one.

        Args:
            cache: ``IRuntimeCache``, empty.
            path: of the file.
        """
        self.cache = cache
        self._path = path
        self._saved = b""
        try:
            data = path.read_bytes()
        except OSError:
            return
        if cache.deserialize(data):
            self._saved = hashlib.sha256(data).digest()
        else:
            _log.info("%s: of another version, driver or GPU; kernels are compiled anew", path)

    def save(self) -> None:
        """Write the file, if there are other kernels than it has."""
        serialized = self.cache.serialize()
        data = b"" if serialized is None else bytes(serialized)
        digest = hashlib.sha256(data).digest()
        if not data or digest == self._saved:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self._path)
        except OSError as error:
            _log.info("%s cannot be written (%s): the next process compiles kernels again", self._path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self._saved = digest
