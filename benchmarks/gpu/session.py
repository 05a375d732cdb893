"""What a stage works with: steps that are recorded one by one, tools with time limits, a device.

The only place that knows a dry run: there, the device is the CPU, the kernels are those of the host mapping,
and tools answer with a sample, after a look whether they were called rightly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from benchmarks.gpu.plan import CampaignError

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
REPOSITORY = Path(__file__).resolve().parents[2]
CONTEXT_LOST = 86
"""Exit code of a stage whose CUDA context is broken: the steps that are left want another process."""


class StepFailed(CampaignError):
    """A step ran to its end, and what it found is not what it should be.

    Attributes:
        value: what it found all the same.
    """

    def __init__(self, message: str, value: Any = None) -> None:
        super().__init__(message)
        self.value = value


class StepSkipped(CampaignError):
    """A step cannot be done here; the message says why."""


@dataclass(frozen=True)
class Finished:
    """A tool that has ended: exit code, and what it wrote to stdout and stderr."""

    code: int
    output: str

    def checked(self, tool: str) -> str:
        """The output.

        Raises:
            StepFailed: the exit code is not 0; with the last lines.
        """
        if self.code != 0:
            raise StepFailed(f"{tool} exited with {self.code}:\n{tail(self.output)}")
        return self.output


class Session:
    """One stage's process.

    Args:
        stage: its name.
        folder: of results; what the stage has found is in ``<stage>.json`` after every step.
        header: of that file: GPU, driver, versions, sizes, commit, command.
        dry: without a GPU.
        steps: found by an earlier process of the same stage, which are not repeated.
        seconds: the stage's own time; tools are stopped when it is over.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        header: Mapping[str, Any],
        *,
        dry: bool,
        steps: Mapping[str, Any],
        seconds: float,
    ) -> None:
        self.stage, self.folder, self.dry = stage, folder, dry
        self._header, self._steps = dict(header), dict(steps)
        self._end = time.monotonic() + seconds
        for step in self._steps.values():
            if step["status"] == "running":
                step.update(status="failed", error="the process ended during this step")

    @property
    def path(self) -> Path:
        """The stage's JSON file."""
        return self.folder / f"{self.stage}.json"

    @property
    def seconds_left(self) -> float:
        """Of the stage's time, less what writing results takes."""
        return self._end - time.monotonic() - 5

    @property
    def device(self) -> torch.device:
        """Where tensors go: the GPU, or in a dry run the CPU."""
        import torch

        return torch.device("cpu" if self.dry else "cuda")

    def scratch(self, name: str) -> Path:
        """A folder of this stage that does not come back with the results."""
        path = self.folder / "work" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def step(self, name: str, run: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Do one step and record what it returns, or what went wrong; one already recorded is not repeated.

        A broken CUDA context ends the process, for nothing would work after it; the runner starts another.

        Returns:
            what the step found; None where it failed.
        """
        done = self._steps.get(name)
        if done is not None:
            return done["value"] if done["status"] == "passed" else None
        record: dict[str, Any] = {"status": "running", "seconds": None, "value": None, "error": None}
        self._steps[name] = record
        self.save("running")
        print(f"--- {self.stage}: {name}", flush=True)
        start = time.monotonic()
        try:
            record["value"] = run(*args, **kwargs)
            record["status"] = "passed"
        except StepSkipped as reason:
            record.update(status="skipped", error=str(reason))
        except StepFailed as error:
            record.update(status="failed", error=str(error), value=error.value)
        except Exception as error:  # noqa: BLE001 - one step's mistake must not lose the others
            traceback.print_exc()
            record.update(status="failed", error=f"{type(error).__name__}: {error}")
        record["seconds"] = round(time.monotonic() - start, 2)
        print(f"    {record['status']} {record['error'] or ''}", flush=True)
        self.save("running")
        if record["status"] == "failed" and self._context_is_lost():
            os._exit(CONTEXT_LOST)
        return record["value"] if record["status"] == "passed" else None

    def finish(self) -> bool:
        """Write the verdict; whether no step failed."""
        passed = not any(step["status"] == "failed" for step in self._steps.values())
        self.save("passed" if passed else "failed")
        return passed

    def save(self, status: str) -> None:
        """Write the file, whole or not at all."""
        record = {
            **self._header,
            "stage": self.stage,
            "status": status,
            "dry": self.dry,
            "steps": self._steps,
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def tool(
        self,
        command: Sequence[str],
        seconds: float,
        sample: Callable[[], str],
        folder: Path = REPOSITORY,
    ) -> Finished:
        """Run a program that needs the GPU; its output also goes to the stage's log.

        Args:
            command: the program and its arguments.
            seconds: after which it is stopped, with all it has started; at most what the stage has left.
            sample: what it would print, and a chance to write what it would write; for dry runs alone.
            folder: to run in; a tree of this project, whose modules it imports.

        Raises:
            StepFailed: it ran out of time. StepSkipped: it is not installed.
        """
        print("$", shlex.join(command), flush=True)
        if self.dry:
            check_command(command, folder)
            return Finished(0, sample())
        paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        return run_limited(command, min(seconds, self.seconds_left), {"PYTHONPATH": paths}, folder)

    def _context_is_lost(self) -> bool:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False


def run_limited(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], folder: Path
) -> Finished:
    """Run a program in a process group of its own and stop the group when the time is over.

    Raises:
        StepFailed: it ran out of time. StepSkipped: it is not installed.
    """
    if seconds <= 0:
        raise StepSkipped("the stage's time is over")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise StepSkipped(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_group(process)
        try:
            output, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # a process that waits for a GPU that hangs does not die
            output = ""
        print(output, flush=True)
        raise StepFailed(f"stopped after {seconds:.0f} s:\n{tail(output)}") from None
    print(output, flush=True)
    return Finished(process.returncode, output)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a group, and the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def check_command(command: Sequence[str], folder: Path) -> None:
    """Hold a command line against what is there: modules and files that it names.

    Raises:
        StepFailed: a module or a file of the repository does not exist.
    """
    for before, argument in zip(["", *command], command, strict=False):
        path, _, _ = argument.partition("::")
        if before == "-m" and "." in argument and importlib.util.find_spec(argument) is None:
            raise StepFailed(f"there is no module {argument}")
        if path.startswith(("tests/", "benchmarks/", "plugins/")) and not (folder / path).exists():
            raise StepFailed(f"there is no file {path}")


def tail(text: str, lines: int = 30) -> str:
    """The last lines."""
    return "\n".join(text.splitlines()[-lines:])
