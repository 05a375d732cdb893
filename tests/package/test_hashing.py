from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.package.hashing import CHUNK_BYTES, HashingWriter, fingerprint_file, hash_file

BLOCK = 4096


def reference_fingerprint(data: bytes) -> str:
    """The definition, over a file held in memory."""
    last = max(len(data) - BLOCK, 0)
    digest = hashlib.sha256(len(data).to_bytes(8, "little"))
    for offset in sorted({last * i // 63 for i in range(64)}):
        digest.update(data[offset : offset + BLOCK])
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 64 * BLOCK, 1_000_003, CHUNK_BYTES + 7])
def test_digests_of_odd_sizes(tmp_path: Path, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    advanced = []
    with HashingWriter(tmp_path / "f") as file:
        for start in range(0, size, 99_991):
            assert file.write(data[start : start + 99_991]) == len(data[start : start + 99_991])
        assert file.tell() == size
    digest = file.result()
    assert (tmp_path / "f").read_bytes() == data
    assert digest.bytes == size
    assert digest.sha256 == hashlib.sha256(data).hexdigest() == hash_file(tmp_path / "f", advanced.append)
    assert digest.fingerprint == reference_fingerprint(data)
    assert sum(advanced) == size


def test_large_writes_hash_beside_writing(tmp_path: Path) -> None:
    data = bytearray(3 << 20)
    with HashingWriter(tmp_path / "f") as file:
        for value in range(3):
            data[:] = bytes([value]) * len(data)  # the caller's buffer is free again after each write
            file.write(memoryview(data).cast("f"))
    expected = b"".join(bytes([value]) * len(data) for value in range(3))
    assert file.result().sha256 == hashlib.sha256(expected).hexdigest()
    assert file.result().bytes == len(expected)


@pytest.mark.parametrize("offset", [0, BLOCK - 1, (10 * 1_000_000 - BLOCK) // 63 * 31 + 5, 9_999_999])
def test_fingerprint_sees_the_sampled_blocks(tmp_path: Path, offset: int) -> None:
    data = bytearray(10_000_000)
    (tmp_path / "f").write_bytes(data)
    before = fingerprint_file(tmp_path / "f")
    data[offset] ^= 1
    (tmp_path / "f").write_bytes(data)
    assert fingerprint_file(tmp_path / "f") != before


def test_writer_refuses_an_existing_file_and_an_early_result(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(FileExistsError):
        HashingWriter(tmp_path / "f")
    with HashingWriter(tmp_path / "g") as file, pytest.raises(RuntimeError, match="g is not complete"):
        file.result()
    with pytest.raises(KeyError), HashingWriter(tmp_path / "h") as file:
        raise KeyError
    with pytest.raises(RuntimeError, match="h is not complete"):
        file.result()


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_pieces_do_not_matter(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("h") / "f"
    with HashingWriter(path) as file:
        for piece in pieces:
            file.write(piece)
    assert file.result().sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
