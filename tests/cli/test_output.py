"""Texts and numbers as commands print them."""

from __future__ import annotations

import pytest

from q2export.cli.output import aligned, format_bytes, format_seconds, print_json


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (988_097_536, "942.3 MiB"),
        (145 * 10**9, "135.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 ms"), (0.0123, "12.3 ms"), (4.2, "4.20 s"), (75, "1 min 15 s"), (3599.7, "60 min 0 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_columns_are_aligned_and_rows_may_be_short() -> None:
    rows = [("a", 5, "end"), ("long", 1234), ("b",)]
    assert aligned(rows, indent=1, right=(1,)) == " a        5  end\n long  1234\n b"
    assert aligned([]) == ""


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "Größe"})
    assert capsys.readouterr().out == '{\n  "text": "Größe"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"x": float("nan")})
