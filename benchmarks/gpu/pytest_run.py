"""Test files run by pytest in a process of its own, and what came of each test."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import REPOSITORY, Session, StepFailed

_SHOWN = 12
_WORKERS = 6  # the references run on the CPU, one thread each; the GPU is shared
_SAMPLE = """<testsuites><testsuite><testcase classname="tests.gpu.sample" name="test_one[a]"/>
<testcase classname="tests.gpu.sample" name="test_two[b]"><skipped message="needs a GPU"/></testcase>
</testsuite></testsuites>"""


@dataclass(frozen=True)
class TestRun:
    """Names of tests by outcome, as ``file::name``; a failure's with its first line."""

    passed: tuple[str, ...]
    failed: dict[str, str]
    skipped: dict[str, str]

    @property
    def line(self) -> str:
        """The counts, and why tests were skipped."""
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        reasons = sorted(set(self.skipped.values()))
        return counts + (f" ({'; '.join(reasons[:4])})" if reasons else "")

    def value(self) -> dict[str, Any]:
        """For the results."""
        return {"line": self.line, "failed": self.failed, "passed": len(self.passed)}


def run_tests(
    session: Session, name: str, arguments: Sequence[str], seconds: float, folder: Path = REPOSITORY
) -> TestRun:
    """Run pytest.

    Args:
        session: whose scratch folder gets the report.
        name: of the report.
        arguments: files and options of pytest.
        seconds: it may take.
        folder: the tree to test.

    Raises:
        StepFailed: it left no report, or not one test has passed or failed.
    """
    report = session.scratch("pytest") / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if find_spec("xdist") is not None:
        command += ["-n", str(_WORKERS), "--max-worker-restart", "20"]

    def sample() -> str:
        report.write_text(_SAMPLE, encoding="utf-8")
        return ""

    done = session.tool([*command, *arguments], seconds, sample, folder)
    if not report.is_file():
        raise StepFailed(f"pytest left no report (exit code {done.code}):\n{done.output[-2000:]}")
    found = read_report(report)
    if not found.passed and not found.failed:
        raise StepFailed(f"nothing ran: {found.line}", found.value())
    return found


def passing_tests(
    session: Session, name: str, arguments: Sequence[str], seconds: float, folder: Path = REPOSITORY
) -> dict[str, Any]:
    """The same as a step, whose result is that all have passed.

    Raises:
        StepFailed: a test has failed; with the first of them.
    """
    found = run_tests(session, name, arguments, seconds, folder)
    if found.failed:
        shown = [f"{test}: {message}" for test, message in list(found.failed.items())[:_SHOWN]]
        raise StepFailed(found.line + "\n" + "\n".join(shown), found.value())
    return found.value()


def read_report(path: Path) -> TestRun:
    """Read pytest's JUnit XML."""
    passed, failed, skipped = [], {}, {}
    for case in ET.parse(path).iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        problem = next((each for tag in ("failure", "error") if (each := case.find(tag)) is not None), None)
        left_out = case.find("skipped")
        if problem is not None:
            failed[test] = (problem.get("message") or problem.text or "").strip().partition("\n")[0][:300]
        elif left_out is not None:
            skipped[test] = left_out.get("message") or ""
        else:
            passed.append(test)
    return TestRun(tuple(passed), failed, skipped)
