"""``python -m benchmarks.gpu``: everything that waits for a GPU, stage by stage, unattended."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.plan import STAGES, CampaignError, chosen
from benchmarks.gpu.runner import Run, run_stages
from benchmarks.gpu.session import REPOSITORY
from benchmarks.gpu.switches import SWITCHES, flip
from benchmarks.machine import commit
from q2export.errors import Q2ExportError


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or apply what a run has proposed; 0 where every chosen stage has passed."""
    arguments = _parser().parse_args(argv)
    try:
        output = arguments.output or Path("build/gpu-dry" if arguments.dry else "build/gpu")
        if arguments.apply:
            return _apply(output / "hopper.json")
        run = Run(
            folder=output,
            commit=_commit(arguments.commit),
            command=shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)]),
            dry=arguments.dry,
            again=arguments.again,
            seconds=arguments.seconds,
            bundle=arguments.bundle,
        )
        passed = run_stages(chosen(arguments.stage), run)
    except Q2ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((output / "summary.md").read_text(encoding="utf-8"))
    return 0 if passed else 1


def _commit(given: str | None) -> str:
    found = given or commit(REPOSITORY)
    if found == "unknown":
        raise CampaignError(
            f"{REPOSITORY} is no git checkout: say which commit it is, --commit $(git rev-parse HEAD)"
        )
    return found


def _apply(path: Path) -> int:
    """Turn on what the stage ``hopper`` has proposed."""
    if not path.is_file():
        raise CampaignError(f"{path} is absent: run the stage hopper")
    record = json.loads(path.read_text(encoding="utf-8"))
    step = record["steps"].get("all together", {"status": "absent", "value": None})
    if record["dry"] or step["status"] != "passed":
        raise CampaignError(
            f"{path} proposes nothing: its last step is {step['status']}, dry {record['dry']}"
        )
    for switch in SWITCHES:
        if switch.name in step["value"]["proposed"]:
            flip(switch, REPOSITORY)
            print(f"{switch.name} is on in {switch.header}: measured at commit {record['commit']}")
    return 0


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {stage.name:10} {stage.what}, {stage.limit} s at most" for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=f"{__doc__}\n\nstages:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--stage", action="append", default=[], help="one of them; may be repeated")
    parser.add_argument("--output", type=Path, help="default: build/gpu, or build/gpu-dry")
    parser.add_argument("--bundle", type=Path, help="folder for a page, the patches and one archive")
    parser.add_argument("--seconds", type=float, help="for all stages of this call together")
    parser.add_argument("--commit", help="of a tree that came without its .git")
    parser.add_argument("--again", action="store_true", help="repeat what has passed, too")
    parser.add_argument("--dry", action="store_true", help="every stage's logic on the CPU")
    parser.add_argument("--apply", action="store_true", help="turn on the switches that a run has proposed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
