"""Cases of kind ``commands``: wall time, peak memory and bytes written of commands run in turn."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from benchmarks.case import Command, CommandsCase
from benchmarks.checkpoint import make_checkpoint
from benchmarks.measure import interleave
from benchmarks.process import CommandError, folder_bytes, run_measured
from benchmarks.result import Outcome
from benchmarks.settings import RunSettings

METRICS = ("wall time", "peak memory", "bytes written")


def run_commands(case: CommandsCase, settings: RunSettings) -> Outcome:
    """Measure the case; the first run of each command is dropped, since it also warms the page cache.

    Raises:
        Q2ExportError: the model cannot be made, or a command of q2export fails.
    """
    checkpoint = make_checkpoint(case.model, settings.work_dir / case.model.config)
    outcome = Outcome()
    turns = {}
    for command in case.commands:
        turn = partial(_run, command, checkpoint, case.threads, settings)
        try:
            turn()
        except CommandError as error:
            if "{q2export}" in command.arguments:
                raise
            outcome.skipped[command.name] = str(error)
            print(f"skipped {command.name}: {error}", file=sys.stderr)
            continue
        turns[command.name] = turn
    measured = interleave(turns, case.rounds, warm_up=False)
    for index, metric in enumerate(METRICS):
        outcome.samples[metric] = {
            name: [[values[index]] for values in rounds] for name, rounds in measured.items()
        }
    return outcome


def _run(command: Command, checkpoint: Path, threads: int, settings: RunSettings) -> list[float]:
    label = command.name.replace(" ", "-")
    output = settings.work_dir / f"{checkpoint.name}-out"
    shutil.rmtree(output, ignore_errors=True)
    places = {
        "{q2export}": settings.q2export,
        "{peers_python}": settings.peers_python,
        "{model}": str(checkpoint),
        "{output}": str(output),
        "{cache}": str(settings.work_dir / "cache"),
    }
    arguments = [places.get(argument, argument) for argument in command.arguments]
    log = settings.work_dir / "logs" / f"{checkpoint.name}-{label}.log"
    measured = run_measured(arguments, log, settings.environment(threads))
    written = folder_bytes(output)
    shutil.rmtree(output)
    return [measured.seconds, float(measured.peak_rss_bytes), float(written)]
