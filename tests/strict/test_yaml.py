from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.errors import ProfileError
from q2export.strict.yaml import parse_yaml, read_yaml


def parse(text: str) -> object:
    return parse_yaml(text, "test.yaml", ProfileError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: -12", {"a": -12}),
        ("a: 1e-3", {"a": 0.001}),  # a string to PyYAML
        ("a: 2.5E+2", {"a": 250.0}),
        ("a: {b: [1, x, null, ~]}", {"a": {"b": [1, "x", None, None]}}),
        ("a:", {"a": None}),
        ("a: no", {"a": "no"}),  # false to PyYAML
        ("a: 010", {"a": "010"}),  # 8 to PyYAML
        ("a: 1:30", {"a": "1:30"}),  # 90 to PyYAML
        ("a: 1_000", {"a": "1_000"}),  # 1000 to PyYAML
        ("a: 2026-11-30", {"a": "2026-11-30"}),  # a date to PyYAML
        ("a: true # why", {"a": True}),
        ("a: '1'", {"a": "1"}),
        ("a: 1e999", {"a": float("inf")}),
        ("", None),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"test\.yaml, line 3, column 1: key 'a' is given twice"),
        ("a: &x [1]\nb: *x\n", r"line 2, column 4: aliases are not supported"),
        ("a: !!python/object/apply:os.getcwd []\n", r"line 1, column 4: tags are not supported"),
        ("a: !!int '7'\n", r"tags are not supported"),
        ("{[1, 2]: 3}\n", r"a key must be a plain word"),
        ("a: [1\n", r"test\.yaml, line 2, column 1: "),
        ("a: 1\n---\nb: 2\n", r"but found another document"),
        ("a: \x00", r"test\.yaml"),
        ("[" * 5000, r"test\.yaml"),
        ("a: " + "9" * 5000, r"test\.yaml"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        parse(text)


def test_billion_laughs_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ProfileError, match="aliases are not supported"):
        parse("\n".join(lines))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(ProfileError, match=r"x\.yaml: cannot be read: No such file"):
        read_yaml(path, ProfileError)
    path.write_bytes(b"a: \xff")
    with pytest.raises(ProfileError, match=r"x\.yaml: not UTF-8 text \(byte 3\)"):
        read_yaml(path, ProfileError)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ProfileError, match=r"larger than 64 KiB"):
        read_yaml(path, ProfileError)
    with pytest.raises(ProfileError, match=r"expected a regular file"):
        read_yaml(tmp_path, ProfileError)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ProfileError, match=r"pipe\.yaml: expected a regular file"):
        read_yaml(tmp_path / "pipe.yaml", ProfileError)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#,? \n\t019.e%@`~<", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse(text)
    except ProfileError as error:
        assert str(error).startswith("test.yaml")
