"""compute-sanitizer over every kernel, one tool a step."""

from __future__ import annotations

from benchmarks.gpu.pytest_run import passing_tests
from benchmarks.gpu.session import Session

TOOLS = ("memcheck", "racecheck")


def run(session: Session) -> None:
    """The steps."""
    for tool in TOOLS:
        arguments = ["tests/gpu/test_sanitizer.py", "-k", tool]
        session.step(tool, passing_tests, session, tool, arguments, 230)
