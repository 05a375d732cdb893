from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.errors import PackageError
from q2export.strict.json import parse_object, read_object, shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is given twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 123456789012345678901}', "an integer of 21 digits"),
        (b'{"a": "\xff"}', "expected UTF-8 text, found byte 7 that is not"),
        (b"[1]", r"expected a JSON object, found \[1\]"),
        (b'{"a": 1} x', "not valid JSON: Extra data"),
        (b'{"a": ' * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_refused(content: bytes, message: str) -> None:
    with pytest.raises(PackageError, match=f"^x.json: .*{message}"):
        parse_object(content, "x.json", PackageError)


def test_taken() -> None:
    assert parse_object(b'{"a": 18446744073709551615, "b": null}', "x", PackageError) == {
        "a": 2**64 - 1,
        "b": None,
    }


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(PackageError, match=r"x\.json: cannot be read: No such file"):
        read_object(path, 10, PackageError)
    path.write_text('{"a": 123456}')
    with pytest.raises(PackageError, match=r"x\.json: 13 bytes, expected at most 12"):
        read_object(path, 12, PackageError)
    assert read_object(path, 13, PackageError) == {"a": 123456}
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(PackageError, match=r"x\.json: expected a regular file"):
        read_object(path, 10, PackageError)


@given(st.binary(max_size=40))
def test_any_bytes_parse_or_are_refused(content: bytes) -> None:
    try:
        assert isinstance(parse_object(content, "x.json", PackageError), dict)
    except PackageError as error:
        assert str(error).startswith("x.json: ")


def test_long_values_are_shown_short() -> None:
    assert len(shown("x" * 10_000)) == 120
    assert len(shown([[["x" * 1000] * 100] * 100] * 100)) == 120
    assert shown(["x", 1]) == "['x', 1]"
