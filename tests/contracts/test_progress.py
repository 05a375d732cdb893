from __future__ import annotations

import subprocess
import sys

import pytest

from q2export.contracts.progress import progress_bar


def test_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("copying", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_shown_on_stderr_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("copying", 3 << 30, show=True) as advance:
        advance(3 << 30)
    out, err = capsys.readouterr()
    assert out == ""
    assert "copying: 100%" in err
    assert "3.00G/3.00G" in err


def test_items_are_counted_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("layers", 24, unit="it", show=True) as advance:
        advance(24)
    assert "24/24" in capsys.readouterr().err


def test_tqdm_is_loaded_only_to_show_something() -> None:
    code = """
import sys
from q2export.contracts.progress import progress_bar
with progress_bar('x', 1):
    print('tqdm' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
