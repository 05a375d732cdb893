"""``python -m benchmarks.serving identical|kill|soak``: one line of JSON for each package."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import q2export
from benchmarks.serving import identical, kill, soak

_CHECKPOINT = Path(__file__).parents[2] / "tests" / "data" / "checkpoints" / "qwen2-tiny"
_RUNS = {"identical": (identical.run, 16), "kill": (kill.run, 50), "soak": (soak.run, 10_000)}


def main() -> None:
    """Run one of them on a package, or on the trained checkpoint built with each profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("run", choices=_RUNS)
    parser.add_argument("--package", type=Path, help="[default: the trained checkpoint, built for this]")
    parser.add_argument("--profile", action="append", help="to build it with  [default: cpu and cpu-int4]")
    parser.add_argument("--count", type=int, help="clients, or requests")
    arguments = parser.parse_args()
    run, count = _RUNS[arguments.run]
    with tempfile.TemporaryDirectory() as folder:
        packages = {str(arguments.package): arguments.package}
        if arguments.package is None:
            packages = {
                profile: q2export.build(
                    _CHECKPOINT, Path(folder) / profile, profile=profile, parity=False
                ).package
                for profile in arguments.profile or ("cpu", "cpu-int4")
            }
        for name, package in packages.items():
            begin = time.monotonic()
            found = run(package, arguments.count or count)
            seconds = round(time.monotonic() - begin, 1)
            print(
                json.dumps({"run": arguments.run, "package": name, "seconds": seconds, **found}), flush=True
            )


if __name__ == "__main__":
    main()
