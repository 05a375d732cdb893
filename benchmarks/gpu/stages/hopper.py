"""The three Hopper switches: their tests, then the rates with each on, then everything with those that pass.

The sources change in a copy of the tree. What passes and is faster is proposed as ``switches.patch``, and as
names in the stage's file, which ``python -m benchmarks.gpu --apply`` turns on.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.pytest_run import passing_tests, run_tests
from benchmarks.gpu.session import REPOSITORY, Session, StepFailed
from benchmarks.gpu.switches import SWITCHES, Switch, flip, is_on, patch

SLOWEST_CASE = 0.97
"""No case may become slower than this, in times of the speed without the switch."""
_LEFT_OUT = shutil.ignore_patterns(
    ".git", "build", "lib", "demo", "out", "__pycache__", ".venv*", ".*_cache", "work"
)


def run(session: Session) -> None:
    """The steps."""
    open_switches = [switch for switch in SWITCHES if not is_on(switch, REPOSITORY)]
    if not open_switches:
        session.step("switches", dict, line="all are on already")
        return
    for path in dict.fromkeys(switch.tests for switch in open_switches):
        session.step(f"tests {Path(path).stem}", _tests, session, path)
    chosen = [each for each in open_switches if session.step(each.name, _tried, session, each)]
    if chosen:
        session.step("all together", _together, session, chosen)
    for what in ("prefill", "moe"):
        session.step(f"{what}: every tile", _every_tile, session, f"tests.gpu.{what}_rates")


def _every_tile(session: Session, module: str) -> dict[str, Any]:
    """Rates of all tiles: whether the plans choose rightly among them."""
    done = session.tool([sys.executable, "-m", module], 120, lambda: "shape, rates of each tile\n")
    lines = done.checked(module).strip().splitlines()
    return {"rates": lines, "line": "; ".join(lines)}


def _tests(session: Session, path: str) -> dict[str, Any]:
    """Results by name, failures included: each switch asks for its own."""
    found = run_tests(session, Path(path).stem, [path], 240)
    return {"line": found.line, "passed": found.passed, "failed": found.failed}


def _tried(session: Session, switch: Switch) -> dict[str, Any]:
    """One switch alone.

    Raises:
        StepFailed: its tests have not passed, a case is wrong, or it is not faster.
    """
    _check_tests(session, switch)
    before = _rates(session, "off", REPOSITORY, switch.cases)
    tree = _tree(session, [switch])
    after = _rates(session, switch.name, tree, switch.cases)
    ratios = {case: before[case] / after[case] for case in switch.cases}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    shown = ", ".join(f"{case} {ratio:.2f}x" for case, ratio in ratios.items())
    value = {"speedups": ratios, "line": f"{mean:.3f}x: {shown}"}
    if not (mean > 1 and min(ratios.values()) >= SLOWEST_CASE):
        raise StepFailed("not faster", value)
    return value


def _check_tests(session: Session, switch: Switch) -> None:
    record = json.loads(session.path.read_text(encoding="utf-8"))
    found = record["steps"][f"tests {Path(switch.tests).stem}"]["value"] or {"passed": [], "failed": {}}
    wrong = {name: text for name, text in found["failed"].items() if switch.word in name}
    right = [name for name in found["passed"] if switch.word in name]
    if session.dry:
        return
    if wrong or not right:
        raise StepFailed(
            f"{len(right)} tests of {switch.word!r} have passed, {len(wrong)} failed\n"
            + "\n".join(f"{name}: {text}" for name, text in list(wrong.items())[:8])
        )


def _tree(session: Session, switches: Sequence[Switch]) -> Path:
    """A copy of the tree with exactly these switches on, its kernels compiled."""
    tree = session.scratch("switches") / "tree"
    if not tree.is_dir():
        shutil.copytree(REPOSITORY, tree, symlinks=True, ignore=_LEFT_OUT)
    for header in dict.fromkeys(switch.header for switch in SWITCHES):
        shutil.copy(REPOSITORY / header, tree / header)  # with today's time, so that it is compiled again
        (tree / header).touch()
    for switch in switches:
        flip(switch, tree)
    command = [sys.executable, "-m", "q2export.plugins.kernel_build", "cuda"]
    session.tool(command, 200, lambda: "built\n", tree).checked("kernel_build")
    return tree


def _rates(session: Session, name: str, tree: Path, cases: Sequence[str]) -> dict[str, float]:
    """Microseconds of each case."""
    output = session.scratch("rates") / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.kernels", *cases, "--rounds", "10", "--output", str(output)]

    def sample() -> str:
        speed = 1.0 if name == "off" else 0.9
        records = [
            {"case": case, "error": None, "times": {"q2export": {"median_us": speed}}} for case in cases
        ]
        output.write_text(json.dumps({"records": records}), encoding="utf-8")
        return ""

    done = session.tool(command, 200, sample, tree)
    if not output.is_file():
        raise StepFailed(f"no rates: {done.output[-1000:]}")
    records = json.loads(output.read_text(encoding="utf-8"))["records"]
    wrong = {each["case"]: each["error"] for each in records if each["error"]}
    if wrong:
        raise StepFailed(f"cases went wrong: {wrong}")
    return {each["case"]: each["times"]["q2export"]["median_us"] for each in records}


def _together(session: Session, chosen: Sequence[Switch]) -> dict[str, Any]:
    """Every test with all that is proposed; passing is what writes the patch."""
    tree = _tree(session, chosen)
    files = ["tests/gpu/test_kernels.py", "tests/gpu/test_accuracy.py", "tests/gpu/test_decoder.py"]
    found = passing_tests(session, "together", files, 240, tree)
    text = patch(chosen, REPOSITORY)
    (session.folder / "switches.patch").write_text(text, encoding="utf-8")
    names = [switch.name for switch in chosen]
    return {**found, "proposed": names, "line": f"{found['line']}; proposed: {', '.join(names)}"}
