"""Reading parts of matrices from the files of a checkpoint, which stay open meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import RawBits, TensorRef
from q2export.strict.json import shown


class TensorFiles:
    """The open files of a checkpoint; a context manager. Any thread may read."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Open them; raises CheckpointError naming the file that cannot be."""
        self._descriptors: dict[Path, int] = {}
        with contextlib.ExitStack() as stack:
            for file in files:
                try:
                    descriptor = os.open(file, os.O_RDONLY)
                except OSError as problem:
                    raise _unreadable(file, problem) from problem
                stack.callback(os.close, descriptor)
                self._descriptors[file] = descriptor
            self._stack = stack.pop_all()

    def __enter__(self) -> TensorFiles:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._stack.close()

    def read(self, ref: TensorRef) -> RawBits:
        """A whole tensor, in its shape, as unsigned integers of its dtype's size.

        Raises:
            CheckpointError: the file cannot be read or has become shorter.
        """
        values: RawBits = np.empty(ref.shape, f"<u{ref.itemsize}")
        self._fill(values, ref, ref.offset)
        return values

    def columns(self, ref: TensorRef, first: int, count: int) -> RawBits:
        """Columns ``first`` to ``first + count - 1`` of a matrix, ``[rows, count]``, as :meth:`read`."""
        rows, columns = ref.shape
        if count == columns:
            return self.read(ref)
        itemsize = ref.itemsize
        values: RawBits = np.empty((rows, count), f"<u{itemsize}")
        for row in range(rows):
            self._fill(values[row], ref, ref.offset + (row * columns + first) * itemsize)
        return values

    def _fill(self, values: RawBits, ref: TensorRef, offset: int) -> None:
        view = values.data.cast("B")
        while view:
            try:
                count = os.preadv(self._descriptors[ref.file], [view], offset)
            except OSError as problem:
                raise _unreadable(ref.file, problem) from problem
            if not count:
                raise CheckpointError(
                    f"{ref.file}: tensor {shown(ref.name)}: expected {ref.nbytes} bytes at {ref.offset}, the "
                    f"file ends at {offset}; it changed since it was opened"
                )
            view, offset = view[count:], offset + count


def _unreadable(file: Path, problem: OSError) -> CheckpointError:
    return CheckpointError(f"{file}: cannot be read: {problem.strerror or problem}")
