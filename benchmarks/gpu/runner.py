"""Gives each stage a process and a time limit, and keeps what each has found, however it ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import STAGES, Stage
from benchmarks.gpu.session import REPOSITORY, end_group
from benchmarks.gpu.summary import summary

WORKER = [sys.executable, "-m", "benchmarks.gpu.worker"]
RESTARTS = 8
"""How often a stage whose process has died goes on with its next step in another."""


@dataclass(frozen=True)
class Run:
    """One call of the command.

    Attributes:
        folder: of results: ``<stage>.json`` and ``<stage>.log`` for each, ``summary.md``.
        commit: of the sources.
        command: as it was given.
        dry: without a GPU.
        again: repeat what has passed.
        seconds: for all stages together; None is as long as they take.
        bundle: folder that gets the page, the patches and one archive of everything else after each stage.
    """

    folder: Path
    commit: str
    command: str
    dry: bool = False
    again: bool = False
    seconds: float | None = None
    bundle: Path | None = None


def run_stages(stages: Sequence[Stage], run: Run) -> bool:
    """Run the stages that have not passed at this commit; whether all have passed now."""
    run.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + (run.seconds or float("inf"))
    for stage in stages:
        if not run.again and status_of(stage, run) == "passed":
            print(f"{stage.name}: has passed already at {run.commit}", flush=True)
            continue
        left = end - time.monotonic()
        if left < stage.least:
            print(f"{stage.name}: not started, {left:.0f} s are left", flush=True)
            continue
        run_stage(stage, run, min(stage.limit, left))
        write_summary(run)
    write_summary(run)
    return all(status_of(stage, run) == "passed" for stage in stages)


def status_of(stage: Stage, run: Run) -> str | None:
    """How the stage ended at this commit, in a run of this kind; None where it has not run."""
    record = record_of(stage, run.folder)
    is_of_this_run = record is not None and (record["commit"], record["dry"]) == (run.commit, run.dry)
    return str(record["status"]) if record is not None and is_of_this_run else None


def record_of(stage: Stage, folder: Path) -> dict[str, Any] | None:
    """What the stage's file holds, if there is one."""
    path = folder / f"{stage.name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run_stage(stage: Stage, run: Run, seconds: float) -> None:
    """Run one stage to its end, in as many processes as it takes.

    Steps that were recorded by a run that was stopped are kept; those that failed are tried again.
    """
    path, log = (run.folder / f"{stage.name}.{suffix}" for suffix in ("json", "log"))
    if run.again or status_of(stage, run) is None:
        path.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
    else:
        _forget_failures(path)
    print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
    start = time.monotonic()
    outcome = "failed"
    for _ in range(RESTARTS):
        left = seconds - (time.monotonic() - start)
        outcome = _one_process(stage, run, left, log) if left > 5 else "timed out"
        if outcome != "crashed":
            break
    _settle(path, outcome, round(time.monotonic() - start, 1), run)
    record = record_of(stage, run.folder)
    print(f"{stage.name}: {record['status'] if record else outcome}", flush=True)


def _one_process(stage: Stage, run: Run, seconds: float, log: Path) -> str:
    """``passed``, ``failed`` (it says which steps), ``timed out`` or ``crashed``."""
    command = [*WORKER, stage.name, str(run.folder.resolve())]
    command += ["--commit", run.commit, "--seconds", f"{seconds:.0f}", "--command", run.command]
    command += ["--dry"] if run.dry else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment(),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            end_group(process)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                print(f"{stage.name}: its process does not end; going on without it", flush=True)
            return "timed out"
    return {0: "passed", 1: "failed"}.get(code, "crashed")


def environment() -> dict[str, str]:
    """Of the stages: this tree, no network, no telemetry, and CUDA's libraries where the wheels have them.

    ONNX Runtime looks for them beside itself, which is another folder than theirs where it was installed with
    ``--target``.
    """
    libraries = [str(path) for path in cuda_libraries()]
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    paths = {
        "PYTHONPATH": [str(REPOSITORY), os.environ.get("PYTHONPATH", "")],
        "LD_LIBRARY_PATH": [*libraries, os.environ.get("LD_LIBRARY_PATH", "")],
    }
    joined = {name: os.pathsep.join(part for part in parts if part) for name, parts in paths.items()}
    return {**os.environ, **fixed, **{name: value for name, value in joined.items() if value}}


def cuda_libraries() -> list[Path]:
    """Folders of the wheels ``nvidia-*``."""
    spec = find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    return [path for root in roots for path in sorted(Path(root).glob("*/lib")) if path.is_dir()]


def _forget_failures(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    record["steps"] = {name: step for name, step in record["steps"].items() if step["status"] == "passed"}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _settle(path: Path, outcome: str, seconds: float, run: Run) -> None:
    """Write how the stage ended, also where its process could not."""
    empty: dict[str, Any] = {"commit": run.commit, "dry": run.dry, "stage": path.stem, "steps": {}}
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else empty
    record["status"], record["seconds"] = outcome, seconds
    for step in record["steps"].values():
        if step["status"] == "running":
            step.update(status="failed", error=f"the stage {outcome} during this step")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_summary(run: Run) -> None:
    """Write the page, and the bundle where one is wanted."""
    order = {stage.name: index for index, stage in enumerate(STAGES)}
    found = [json.loads(path.read_text(encoding="utf-8")) for path in run.folder.glob("*.json")]
    records = sorted(found, key=lambda record: order.get(record["stage"], len(order)))
    page = run.folder / "summary.md"
    page.write_text(summary(records), encoding="utf-8")
    if run.bundle is None:
        return
    run.bundle.mkdir(parents=True, exist_ok=True)
    for path in (page, *sorted(run.folder.glob("*.patch"))):
        shutil.copy(path, run.bundle)
    partial = run.bundle / "stages.partial"
    with tarfile.open(partial, "w:gz") as archive:
        for path in sorted([*run.folder.glob("*.json"), *run.folder.glob("*.log")]):
            archive.add(path, arcname=path.name)
    os.replace(partial, run.bundle / "stages.tar.gz")
