"""The entry point: help, errors, exit codes, streams."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
import pytest

from q2export import __version__
from q2export.cli.commands import COMMANDS, CommandGroup
from q2export.cli.main import main
from q2export.contracts.commands import install_command
from q2export.errors import CheckpointError

HEAVY = {"huggingface_hub", "jinja2", "numpy", "onnx", "onnxruntime", "tokenizers", "torch", "tqdm", "yaml"}
HELP = "import sys; from q2export.cli.main import main; code = main(['--help'])"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], list[str]]:
    """Make ``doctor`` raise; returns its command line."""

    def install(error: BaseException) -> list[str]:
        def examine() -> NoReturn:
            raise error

        monkeypatch.setattr("q2export.inspect.machine.examine", examine)
        return ["doctor"]

    return install


def test_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert all(summary in out for summary in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = import_module(f"q2export.cli.{name}").command
    assert isinstance(command, click.Command)
    assert command.help is not None
    assert command.help.splitlines()[0] == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_kebab_case_and_explained(name: str) -> None:
    for parameter in import_module(f"q2export.cli.{name}").command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option == option.lower()
            assert isinstance(parameter, click.Argument) or "_" not in option
        assert isinstance(parameter, click.Argument) or parameter.help


def test_help_imports_little_and_nothing_heavy() -> None:
    """So that it comes in less than 0.3 s: there are 125 modules, most of them Python's own."""
    probe = f"{HELP}; print(code, sorted({HEAVY!r} & set(sys.modules)), len(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    answer, _, modules = result.stderr.rpartition(" ")
    assert answer == "0 []"
    assert int(modules) < 160


def test_only_the_command_that_runs_is_imported() -> None:
    probe = (
        "import sys; from q2export.cli.main import main; main(['build', '--help']);"
        "print([n for n in sys.modules if n in ('q2export.cli.build', 'q2export.cli.chat')], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stderr == "['q2export.cli.build']\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"q2export {__version__}\n"


def test_no_arguments_show_the_help_and_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biuld"], "error: no command 'biuld'; did you mean 'build'?"),
        (["train"], "error: no command 'train'"),
        (["--wat"], "error: No such option '--wat'"),
        (["build", "--output", "out"], "error: Missing option '--model'"),
        (["build", "--model", "x"], "error: missing option '-o' / '--output'"),
        (["build", "--model", "x", "-o", "out", "--weights", "move"], "'move' is not one of"),
        (["bench", "package", "--batch", "0"], "0 is not in the range"),
        (["inspect"], "error: Missing argument 'PATH'"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Usage: q2export" in captured.err


def test_a_user_error_is_one_message(
    failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = failing(CheckpointError("model.safetensors: tensor 'x' is missing"))
    assert main(command) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: model.safetensors: tensor 'x' is missing\n")


def test_debug_shows_the_traceback(
    failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--debug", *failing(CheckpointError("wrong"))]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: wrong\n")


def test_an_unforeseen_error_asks_for_a_report(
    failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(failing(KeyError("layer"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected KeyError: 'layer'\n")
    assert "report" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/root/x"), "error: /root/x: Permission denied\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (MemoryError(), "error: out of memory\n"),
        (
            ModuleNotFoundError("No module named 'torch.export'", name="torch.export"),
            f"error: torch is not installed; install it with: {install_command('export')}\n",
        ),
    ],
)
def test_errors_of_the_system_are_user_errors(
    error: Exception,
    message: str,
    failing: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(failing(error)) == 1
    assert capsys.readouterr().err == message


def test_a_missing_module_of_our_own_is_a_bug(
    failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(failing(ModuleNotFoundError("No module named 'q2export.x'", name="q2export.x"))) == 1
    assert "unexpected ModuleNotFoundError" in capsys.readouterr().err


def test_interrupt(failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = "from q2export.cli.main import entry_point; entry_point()"
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", script, "--help"], stdout=subprocess.PIPE, stderr=err
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 141
    assert (tmp_path / "err").read_bytes() == b""


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], "warning: careful\n"),
        (["--verbose"], "info: going on\nwarning: careful\n"),
        (["--debug"], "debug: detail\ninfo: going on\nwarning: careful\n"),
    ],
)
def test_the_log_goes_to_stderr(
    flags: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        log = logging.getLogger("q2export.somewhere")
        log.debug("detail")
        log.info("going on")
        log.warning("careful")

    monkeypatch.setattr(CommandGroup, "get_command", lambda self, context, name: command)
    assert main([*flags, "doctor"]) == 0
    assert capsys.readouterr().err == shown
    assert logging.getLogger("q2export").handlers == []
