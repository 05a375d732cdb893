"""Rows of a matrix on disk, as bits, with zeros around them where the matrix is padded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from q2export.exporter.checkpoint.folder import RawBits, TensorRef, read_blocks
from q2export.exporter.checkpoint.values import check_block, convert_block


@dataclass(frozen=True)
class Rows:
    """Some rows.

    Attributes:
        bits: ``[rows, columns]``, uint32 for F32, uint16 for F16 and BF16.
        dtype: of the tensor.
        source_bytes: of them on disk, without padding.
    """

    bits: RawBits
    dtype: str
    source_bytes: int

    def float32(self) -> npt.NDArray[np.float32]:
        """Their values, ``[rows, columns]``."""
        flat = convert_block(self.bits.reshape(-1), self.dtype, "F32")
        values: npt.NDArray[np.float32] = flat.view("<f4").reshape(self.bits.shape)
        return values


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix; a vector is one row."""
    return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])


def read_rows(ref: TensorRef, shape: tuple[int, int], first: int, count: int) -> Rows:
    """Read rows of a matrix and check that they are finite.

    Args:
        ref: where the matrix is; a vector is one row.
        shape: of the matrix wanted, at least as large as the one on disk; what is not there is zero.
        first: row. count: rows.

    Raises:
        CheckpointError: a value is not finite, or the file cannot be read; naming file, tensor and index.
    """
    rows, columns = as_matrix(ref.shape)
    found = max(0, min(count, rows - first))
    row_bytes = columns * ref.itemsize
    nbytes = found * row_bytes
    part = replace(ref, shape=(found, columns), offset=ref.offset + first * row_bytes, nbytes=nbytes)
    bits = np.zeros((count, shape[1]), "<u4" if ref.itemsize == 4 else "<u2")
    for _, raw in read_blocks(part, max(nbytes, 1)):
        check_block(raw, ref.dtype, ref.dtype, ref, first * columns)
        if bits.shape == (found, columns):
            return Rows(raw.reshape(bits.shape), ref.dtype, nbytes)
        bits[:found, :columns] = raw.reshape(found, columns)
    return Rows(bits, ref.dtype, nbytes)
