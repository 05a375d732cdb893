"""The process as a shell starts it: closed and full streams, readers that go away, Ctrl-C, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = f"{sys.executable} -m q2export"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; the exit code is that of the program, also in a pipeline."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        ("<&-", 0, True, ""),
        ("2>&-", 0, True, ""),
        ("2>/dev/full", 0, True, ""),
        (">&-", 1, False, "error: cannot write to stdout: Bad file descriptor\n"),
        (">/dev/full", 1, False, "error: cannot write to stdout: No space left on device\n"),
        ("<&- >&- 2>&-", 1, False, ""),
        ("2>&1 | head -c 0", 141, False, ""),
    ],
)
@pytest.mark.parametrize("command", ["--help", "inspect PACKAGE"])
def test_streams_that_are_closed_or_full(
    command: str, redirection: str, code: int, out: bool, err: str, qwen2_tiny_package: Path
) -> None:
    line = f"{PROGRAM} {command.replace('PACKAGE', str(qwen2_tiny_package))} {redirection}"
    done = shell(line)
    # A pipe takes 64 KiB before its writer notices that the reader has gone.
    assert done.returncode in ({0, code} if code == 141 else {code})
    assert bool(done.stdout) is out
    assert done.stderr == err


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(redirection: str) -> None:
    assert shell(f"{PROGRAM} biuld {redirection}").returncode == 2
    assert shell(f"{PROGRAM} inspect /nowhere {redirection}").returncode == 1


def test_a_prompt_from_a_closed_stdin_is_empty(qwen2_tiny_package: Path) -> None:
    done = shell(f"{PROGRAM} generate {qwen2_tiny_package} <&-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and "empty" in done.stderr and "Traceback" not in done.stderr
    assert shell(f"{PROGRAM} chat {qwen2_tiny_package} <&-").returncode == 0


def test_a_prompt_file_may_be_stdin(qwen2_tiny_package: Path) -> None:
    options = f"generate {qwen2_tiny_package} --greedy --max-new-tokens 4"
    given = shell(f"{PROGRAM} {options} --prompt 'A class'")
    piped = shell(f"echo 'A class' | {PROGRAM} {options} --prompt-file -")
    assert (piped.returncode, piped.stdout) == (0, given.stdout)


@pytest.mark.parametrize("module", ["q2export.cli.streams", "click", "q2export.inspect.machine"])
def test_ctrl_c_while_starting_is_one_line(module: str) -> None:
    script = f"""
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

from q2export.cli.main import entry_point
sys.meta_path.insert(0, Interrupt())
sys.argv = ["q2export", "doctor"]
entry_point()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_completion() -> None:
    script = shell(PROGRAM, _Q2EXPORT_COMPLETE="bash_source")
    assert script.returncode == 0 and "complete" in script.stdout and "_Q2EXPORT_COMPLETE" in script.stdout
    words = {"_Q2EXPORT_COMPLETE": "bash_complete", "COMP_WORDS": "q2export ge", "COMP_CWORD": "1"}
    assert shell(PROGRAM, **words).stdout.split() == ["plain,generate"]
    words |= {"COMP_WORDS": "q2export build --profile a1", "COMP_CWORD": "3"}
    assert shell(PROGRAM, **words).stdout.split() == ["plain,a100"]
