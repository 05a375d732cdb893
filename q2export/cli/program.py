"""The command line as one function: global options, logging, and what every error looks like."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from q2export.cli.commands import CommandGroup
from q2export.cli.exit_codes import FAILED, OK, USAGE
from q2export.contracts.commands import install_command
from q2export.contracts.progress import NOTICE
from q2export.errors import OptionError, ProfileError, Q2ExportError
from q2export.version import __version__

_PROGRAM, _COMPLETE = "q2export", "_Q2EXPORT_COMPLETE"

# Import name -> extra that installs it, for the modules that a plain installation lacks.
_EXTRA_OF = {
    **dict.fromkeys(("onnx", "onnx_ir", "polygraphy", "torch"), "export"),
    **dict.fromkeys(("llguidance", "prometheus_client", "pydantic", "starlette", "uvicorn"), "server"),
}


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="q2export %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log stages and their times to stderr.")
@click.option("--debug", is_flag=True, help="Log everything, and show the traceback of an error.")
def cli(verbose: bool, debug: bool) -> None:
    """Qwen2 and Qwen2-MoE checkpoints to production engines.

    Results go to stdout; logs, timings and progress to stderr.
    """


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors are printed to stderr.

    Raises:
        KeyboardInterrupt, BrokenPipeError: for the caller, who knows the process.
    """
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, _PROGRAM, _COMPLETE, instruction)
    debug = False
    try:
        with cli.make_context(_PROGRAM, arguments) as context:
            debug = bool(context.params["debug"])
            with _logging_to_stderr(debug, bool(context.params["verbose"])):
                cli.invoke(context)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - every error becomes one message here, and an exit code
        return _report(error, debug)
    return OK


@contextmanager
def _logging_to_stderr(debug: bool, verbose: bool) -> Iterator[None]:
    """Show the log of ``q2export`` on stderr while a command runs: warnings, or more if asked."""
    logger = logging.getLogger("q2export")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogLine())
    previous = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else NOTICE)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous)


class _LogLine(logging.Formatter):
    """``warning: ...``, in the style of the error messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        label = "note" if record.levelno == NOTICE else record.levelname.lower()
        return f"{label}: {record.getMessage()}"


def _report(error: Exception, debug: bool) -> int:
    """Print what went wrong and return the exit code it stands for."""
    if isinstance(error, click.UsageError):
        _report_usage(error)
        return USAGE
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.Abort):
        click.echo("error: aborted", err=True)
        return FAILED
    click.echo(f"error: {_message(error)}", err=True)
    return FAILED


def _report_usage(error: click.UsageError) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.\n", err=True)
    click.echo(f"error: {error.format_message()}", err=True)


def _message(error: Exception) -> str:
    """What the user should read about an error: the error's own words if it was foreseen."""
    if isinstance(error, OptionError):
        return f"--{error.name.replace('_', '-')} {error.problem}"
    if isinstance(error, ProfileError) and error.advice:
        return f"{error}; give {' or '.join(map(_as_options, error.advice))}"
    if isinstance(error, Q2ExportError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        if module in _EXTRA_OF:
            return f"{module} is not installed; install it with: {install_command(_EXTRA_OF[module])}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    return (
        f"unexpected {type(error).__name__}: {error}\n"
        "This is a bug of q2export. Please report it, with the traceback that 'q2export --debug ...' prints."
    )


_OPTIONS = {"profile": "--profile", "quantization.weights": "--quantization", "builder": "--builder"}


def _as_options(overrides: Mapping[str, object]) -> str:
    """Overrides of a profile as the options that give them, quoted for a shell."""
    words = []
    for key, value in overrides.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [_OPTIONS[key], text] if key in _OPTIONS else ["--set", f"{key}={text}"]
    return shlex.join(words)
