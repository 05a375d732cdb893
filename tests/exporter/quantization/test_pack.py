"""Packing of codes against the format's definition, written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.exporter.checkpoint.pack import UInt8Array, pack, unpack


def packed_one_by_one(row: list[int]) -> list[int]:
    """Two nibbles per byte, the first one low; an odd one is followed by zero."""
    even = [*row, 0] if len(row) % 2 else row
    return [low + 16 * high for low, high in zip(even[0::2], even[1::2], strict=True)]


@st.composite
def nibbles(draw: st.DrawFn) -> UInt8Array:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    values = draw(st.lists(st.integers(0, 15), min_size=rows * columns, max_size=rows * columns))
    return np.array(values, np.uint8).reshape(rows, columns)


@given(codes=nibbles())
def test_nibbles_are_packed_as_defined_and_come_back(codes: UInt8Array) -> None:
    packed = pack(codes, 4)
    assert packed.tolist() == [packed_one_by_one(row) for row in codes.tolist()]
    assert np.array_equal(unpack(packed, 4, codes.shape[1]), codes)


@given(codes=nibbles())
def test_what_is_not_contiguous_is_packed_the_same(codes: UInt8Array) -> None:
    assert np.array_equal(pack(np.asfortranarray(codes), 4), pack(codes, 4))
    assert np.array_equal(pack(codes[:, ::-1], 4), pack(codes[:, ::-1].copy(), 4))


def test_bytes_are_left_alone() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    assert pack(codes, 8) is codes
    assert np.array_equal(unpack(codes, 8, 128), codes)


def test_the_bytes_are_those_of_onnx_uint4() -> None:
    onnx = pytest.importorskip("onnx")
    codes = np.random.default_rng(0).integers(0, 16, (3, 10)).astype(np.uint8)
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.UINT4, codes.shape, codes.ravel().tolist())
    raw = tensor.raw_data or bytes(tensor.int32_data)
    assert pack(codes, 4).tobytes() == raw
