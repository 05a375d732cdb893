"""Compiling for, and running Python under, gcc's address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.plugins.host_kernels import ROOT

FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0"}  # Python itself never frees all


def library(name: str) -> str:
    """The path of a sanitizer's run-time library, which has to be loaded before Python."""
    if shutil.which("g++") is None or shutil.which("gcc") is None:
        pytest.skip("needs gcc and g++")
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"needs gcc's {name}")
    return path


def run(module: str, arguments: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests with the sanitizers loaded."""
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)
