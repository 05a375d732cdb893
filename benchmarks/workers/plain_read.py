"""A plain loop over the weights of a package of q2export: the time below which no step can be that uses all.

The loop is compiled when the worker starts. It reads the mapped files where they lie, as the engine does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.workers.serve import Settings, serve
from q2export.plugins.kernel_build.cpu import cpu_library

_SOURCE = Path(__file__).with_suffix(".cpp")
_ALIGNMENT = 8


class LoadedWeights:
    """Mapped weights under the protocol of :class:`benchmarks.workers.serve.Model`; a token is one pass."""

    def __init__(self, function: Any, files: dict[Path, list[tuple[int, int]]], threads: int) -> None:
        self._function, self._threads = function, threads
        maps = {path: np.frombuffer(_map(path), np.uint8) for path in files}
        pieces = [maps[path][start:end] for path, ranges in files.items() for start, end in ranges]
        self._maps = maps  # the pieces lie in them
        self._addresses = (ctypes.c_void_p * len(pieces))(*(piece.ctypes.data for piece in pieces))
        self._sizes = (ctypes.c_size_t * len(pieces))(*(piece.size for piece in pieces))

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Read everything ``count`` times."""
        for _ in range(count):
            self.read()
            yield 0

    def read(self) -> int:
        """Read everything once; the sum of its 64-bit words."""
        return int(self._function(self._addresses, self._sizes, len(self._sizes), self._threads))

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """Refused."""
        raise ValueError("there is nothing to batch")

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Refused."""
        raise ValueError("there are no logits")


class PlainRead:
    """Finds the weights that a package's graph names."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._function = _compiled()

    def versions(self) -> dict[str, str]:
        """None: it is this file."""
        return {}

    def load(self) -> LoadedWeights:
        """Map the weights."""
        files = weight_ranges(Path(self._settings.model) / "model.onnx")
        return LoadedWeights(self._function, files, self._settings.threads)


def weight_ranges(model: Path) -> dict[Path, list[tuple[int, int]]]:
    """Per file, the byte ranges ``[start, end)`` of the external data of a graph, each once."""
    found: dict[Path, set[tuple[int, int]]] = {}
    for tensor in onnx.load(str(model), load_external_data=False).graph.initializer:
        data = {entry.key: entry.value for entry in tensor.external_data}
        if data:
            start = int(data.get("offset", 0))
            start -= start % _ALIGNMENT
            found.setdefault(model.parent / data["location"], set()).add((start, start + int(data["length"])))
    return {path: sorted(ranges) for path, ranges in found.items()}


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _compiled() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain_read.so"
        compiler = cpu_library(os.environ, Path(folder)).compiler
        options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *options, _SOURCE, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).plain_read
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    function.restype = ctypes.c_uint64
    return function


if __name__ == "__main__":
    serve(PlainRead)
