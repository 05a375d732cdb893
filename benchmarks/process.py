"""Runs a command and measures its wall time and the memory of its whole process tree (Linux, ``/proc``)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from q2export.errors import Q2ExportError

_POLL_SECONDS = 0.01
_SHOWN_LINES = 20


class CommandError(Q2ExportError):
    """A measured command failed; the message ends with the last lines it wrote."""


@dataclass(frozen=True)
class Measured:
    """Wall time and the largest resident set of the process tree, mapped files included."""

    seconds: float
    peak_rss_bytes: int


def run_measured(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Measured:
    """Run ``command`` to its end.

    Memory is polled: per process the kernel's own high-water mark, or the sum over processes alive at the
    same time, whichever is larger. (``getrusage`` would count the memory of the parent at the time of the
    fork.)

    Raises:
        CommandError: the command cannot be started or exits with another code than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
            )
        except OSError as error:
            raise CommandError(f"cannot run {command[0]}: {error.strerror}") from error
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_rss_bytes(process.pid))
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        raise CommandError(f"{' '.join(command)}\nexited with {process.returncode}:\n{tail}")
    return Measured(seconds, peak)


def tree_rss_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants, and at least the high-water mark of each."""
    now, highest = 0, 0
    for member in _tree(pid):
        status = _status(member)
        now += status.get("VmRSS", 0)
        highest = max(highest, status.get("VmHWM", 0))
    return max(now, highest)


def reset_peak(pid: int) -> None:
    """Let the high-water mark of a process's resident bytes start anew, at what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def folder_bytes(folder: Path) -> int:
    """Disk space of the regular files of a folder, without those that are hard links to files elsewhere."""
    stats = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(stat.st_blocks * 512 for stat in stats if stat.st_nlink == 1)


def _tree(pid: int) -> list[int]:
    members = [pid]
    for member in members:  # grows while it is walked
        try:
            tasks = os.listdir(f"/proc/{member}/task")
            for task in tasks:
                members += [
                    int(child) for child in Path(f"/proc/{member}/task/{task}/children").read_text().split()
                ]
        except OSError:
            continue  # it has just ended
    return members


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) * 1024 for name, _, value in fields}
