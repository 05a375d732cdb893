"""What every test shares: one thread per worker, hypothesis without deadlines, the trained checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before anything imports torch: the workers of pytest-xdist share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports ONNX Runtime, in this process or one it starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from hypothesis import settings

# A shell's background jobs ignore it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time: a run that fails here fails everywhere.
settings.register_profile("q2export", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("q2export")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """The folder of the trained checkpoints, ``qwen2-tiny`` and ``qwen2-moe-tiny``."""
    return REPOSITORY / "tests" / "data" / "checkpoints"


@pytest.fixture(scope="session")
def qwen2_tiny_package(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``qwen2-tiny`` built for the CPU, once per worker. Not to be written to."""
    from q2export import api

    output = tmp_path_factory.mktemp("packages") / "qwen2-tiny"
    return api.build(checkpoints / "qwen2-tiny", output, profile="cpu", parity=False).package
