"""Compiling for, and running Python under, gcc's address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.host_cuda.compiling import ROOT

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


def run_apart(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests in a process of its own, which may come to a bad end."""
    command = [sys.executable, "-m", module, *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)


def run(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """:func:`run_apart` with the sanitizers loaded."""
    preload = {"LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}"}
    return run_apart(module, arguments, {**OPTIONS, **preload})
