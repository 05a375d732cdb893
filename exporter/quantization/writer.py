"""Writing the safetensors file of a quantized checkpoint, piece by piece in any order, from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from q2export.errors import ExportError
from q2export.exporter.checkpoint.pack import PackedRows
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.packed_layout import PADDING_PREFIX, Layout, PlacedTensor
from q2export.package.hashing import naming

_T = TypeVar("_T", bound=np.generic)


class PackedWriter:
    """Puts rows of weights where the layout has them.

    A context manager; leaving it normally checks that every tensor was written, once, and brings the file to
    stable storage. All offsets are known beforehand, so nothing is held back in memory: scales go to their
    place as soon as their row is done::

        with PackedWriter(folder / "model.safetensors", layout) as writer:
            writer.write_rows([weight], first_row, [rows.packed(bits)])
            writer.write_plain("model.norm.weight", 0, data)
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Create ``path`` and write the header; raises FileExistsError if it is there already."""
        self._path = path
        self._layout = layout
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._lock = threading.Lock()
        self._missing = {
            name: one.nbytes for name, one in layout.tensors.items() if not name.startswith(PADDING_PREFIX)
        }
        try:
            with naming(path):
                os.truncate(self._descriptor, layout.file_bytes)
            self._write(layout.header, 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write_rows(
        self, weights: Sequence[PackedWeight], first_row: int, parts: Sequence[PackedRows]
    ) -> None:
        """Write the rows that start at ``first_row`` of all weights that one tensor holds.

        Args:
            weights: one, or those whose rows alternate, in order.
            first_row: of each weight.
            parts: of each weight, all with the same number of rows.

        Raises:
            ExportError: these are not all weights of the tensor, or the rows do not have their shape: a fault
                of the caller.
        """
        _check_rows(weights, first_row, parts)
        one = weights[0]
        first = first_row * one.row_step
        self._put(one.tensor, first, _alternating([part.codes for part in parts]))
        scales = [part.scales.astype("<f2", casting="equiv", copy=False) for part in parts]
        self._put(one.scale_name, first, _alternating(scales))
        if one.zero_point_name is not None:
            zero_points = [part.zero_points for part in parts if part.zero_points is not None]
            self._put(one.zero_point_name, first, _alternating(zero_points))

    def write_plain(self, name: str, first_byte: int, data: npt.NDArray[np.generic]) -> None:
        """Write bits of a tensor that keeps its dtype, from its byte ``first_byte`` on."""
        self._put_bytes(self._layout.tensors[name], first_byte, data)

    def _put(self, name: str, first_row: int, data: npt.NDArray[np.generic]) -> None:
        self._put_bytes(self._layout.tensors[name], first_row * data.shape[1] * data.itemsize, data)

    def _put_bytes(self, tensor: PlacedTensor, first_byte: int, data: npt.NDArray[np.generic]) -> None:
        if first_byte < 0 or first_byte + data.nbytes > tensor.nbytes:
            raise ExportError(
                f"{tensor.name!r}: bytes {first_byte} to {first_byte + data.nbytes} were to be written, the "
                f"tensor has {tensor.nbytes}"
            )
        self._write(np.ascontiguousarray(data).data.cast("B"), tensor.offset + first_byte)
        with self._lock:
            self._missing[tensor.name] -= data.nbytes

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        with naming(self._path):
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count

    def close(self) -> None:
        """Bring the file to stable storage.

        Raises:
            ExportError: a tensor was not written completely, or a part of it twice.
        """
        wrong = [name for name, count in self._missing.items() if count != 0]
        if wrong:
            raise ExportError(
                f"{self._path}: {len(wrong)} tensor(s) were not written exactly once, first {wrong[0]!r}: "
                f"{self._missing[wrong[0]]} bytes are missing"
            )
        os.fsync(self._descriptor)

    def __enter__(self) -> PackedWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception without looking at what was written."""
        try:
            if kind is None:
                self.close()
        finally:
            os.close(self._descriptor)


def _alternating(parts: Sequence[npt.NDArray[_T]]) -> npt.NDArray[_T]:
    """Row 0 of each part, row 1 of each, and so on."""
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1).reshape(-1, parts[0].shape[1])


def _check_rows(weights: Sequence[PackedWeight], first_row: int, parts: Sequence[PackedRows]) -> None:
    one, rows = weights[0], parts[0].codes.shape[0]
    places = [(weight.tensor, weight.first_row) for weight in weights]
    if places != [(one.tensor, index) for index in range(one.row_step)] or len(parts) != len(weights):
        names = ", ".join(weight.name for weight in weights)
        raise ExportError(f"rows of {one.tensor!r} alternate between {one.row_step} weights, got {names}")
    zero_points = None if one.scheme.symmetric else (rows, one.zero_point_shape[1])
    expected = (rows, one.codes_shape[1]), (rows, one.blocks), zero_points
    for weight, part in zip(weights, parts, strict=True):
        shape = None if part.zero_points is None else part.zero_points.shape
        found = part.codes.shape, part.scales.shape, shape
        if found != expected:
            raise ExportError(
                f"{weight.name!r}: expected packed codes, scales and zero points {expected} from row "
                f"{first_row}, found {found}"
            )
