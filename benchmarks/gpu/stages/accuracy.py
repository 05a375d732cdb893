"""The tests of the kernels, file by file, so that one that breaks or hangs does not take the others along."""

from __future__ import annotations

from benchmarks.gpu.pytest_run import passing_tests
from benchmarks.gpu.session import Session

FILES = {
    "kernels": "tests/gpu/test_kernels.py",
    "accuracy": "tests/gpu/test_accuracy.py",
    "decoder": "tests/gpu/test_decoder.py",
    "moe": "tests/gpu/test_moe.py",
    "prefill": "tests/gpu/test_prefill.py",
}
"""Those of ``tests/plugins`` that apply to a GPU are among them: ``tests/gpu`` takes them over."""


def run(session: Session) -> None:
    """The steps."""
    for name, path in FILES.items():
        session.step(name, passing_tests, session, name, [path], 200)
