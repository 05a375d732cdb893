"""``python -m benchmarks.gpu.worker STAGE FOLDER``: one stage, in this process; the runner starts it."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import chosen
from benchmarks.gpu.session import Session
from benchmarks.machine import describe_machine, library_versions

_PACKAGES = (
    "onnxruntime-gpu",
    "cuda-bindings",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "polygraphy",
    "tensorrt-rtx-cu13-libs",
    "triton",
)
_GPU_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm", "clocks.max.memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; 0 where every step passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--command", default="", help="that the runner was given")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args(argv)
    (stage,) = chosen([arguments.stage])
    header = {
        "commit": arguments.commit,
        "command": arguments.command,
        "gpu": gpu(),
        "machine": describe_machine(),
        "versions": versions(),
    }
    path = arguments.folder / f"{stage.name}.json"
    steps = json.loads(path.read_text(encoding="utf-8"))["steps"] if path.is_file() else {}
    session = Session(
        stage.name,
        arguments.folder,
        header,
        dry=arguments.dry,
        steps=steps,
        seconds=arguments.seconds,
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("q2export").setLevel(logging.INFO)
    stage.load()(session)
    return 0 if session.finish() else 1


def gpu() -> dict[str, str] | None:
    """The first GPU as ``nvidia-smi`` describes it, without a CUDA context; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    return dict(zip(_GPU_FIELDS, map(str.strip, lines[0].split(",")), strict=False)) if lines else None


def versions() -> dict[str, Any]:
    """Of the libraries that matter, by distribution."""
    found: dict[str, Any] = library_versions()
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
