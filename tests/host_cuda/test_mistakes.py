"""Kernels with a mistake do not end well on the host: what is said, and where."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.host_cuda import sanitizers
from tests.host_cuda.compiling import CSRC, RACES, SANITIZED, HostFlags, compile_for_host

SOURCES = [*sorted(CSRC.glob("kernels/common/*.cu")), Path(__file__).with_name("mistakes.cu")]


@pytest.fixture(scope="module")
def program() -> Path:
    return compile_for_host("mistakes", HostFlags(link=()), SOURCES)


@pytest.fixture(scope="module")
def sanitized_program() -> Path:
    sanitizers.library("libasan.so")
    return compile_for_host("sanitized-mistakes", replace(SANITIZED, link=()), SOURCES)


@pytest.fixture(scope="module")
def race_checked_program() -> Path:
    return compile_for_host("race-checked-mistakes", replace(RACES, link=()), SOURCES)


@pytest.fixture(scope="module")
def portable_program() -> Path:
    """As on a CPU whose stacks the mapping does not know how to switch."""
    flags = HostFlags(("-O1", "-DHOST_CUDA_UCONTEXT"), link=())
    return compile_for_host("portable-mistakes", flags, SOURCES)


def run(program: Path, mistake: str) -> str:
    """What a kernel that must not end well said."""
    environment = {**os.environ, **sanitizers.OPTIONS}
    done = subprocess.run([program, mistake], capture_output=True, text=True, env=environment)
    assert done.returncode not in (0, 2), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("mistake", "messages"),
    [
        ("diverged_shuffle", ["has diverged", "__shfl_xor_sync (", "for lanes 0xffff0000"]),
        ("returned_before_mma", ["warp 1 has diverged", "mma.m16n8k16 (", "lane 5 has returned"]),
        (
            "barrier_instead_of_shuffle",
            ["has diverged", "lanes 0xffffff00 wait at __syncwarp", "lane 7 waits at __syncthreads"],
        ),
        ("returned_before_barrier", ["block (0, 0, 0)", "32 of 64 threads returned before a barrier"]),
        ("two_barriers", ["threads wait at different barriers"]),
        ("not_in_mask", ["__shfl_sync (", "is not in its mask 0x0000ffff"]),
        ("from_outside_mask", ["shuffles from lane 20, which is not in mask 0x0000ffff"]),
        ("misaligned_copy", ["cp.async (", "is not a multiple of 16"]),
        ("copy_to_global", ["cp.async (", "is not in shared memory"]),
        ("unfinished_copy", ["returns before it has waited for its asynchronous copies"]),
        ("misaligned_matrix", ["ldmatrix.x4 (", "is not a multiple of 16"]),
        ("matrix_in_global", ["ldmatrix.x4 (", "is not in shared memory"]),
        ("beyond_dynamic_shared", ["has written beyond its 1024 bytes of dynamic shared memory"]),
    ],
)
def test_the_mapping_says_what_is_wrong(program: Path, mistake: str, messages: list[str]) -> None:
    said = run(program, mistake)
    for message in messages:
        assert message in said, said


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("beyond_dynamic_shared", "heap-buffer-overflow"),
        ("beyond_static_shared", "global-buffer-overflow|with insufficient space"),
        ("copy_beyond_source", "heap-buffer-overflow"),
    ],
)
def test_sanitizers_see_what_leaves_its_memory(sanitized_program: Path, mistake: str, message: str) -> None:
    said = run(sanitized_program, mistake)
    assert re.search(message, said) and "mistakes.cu" in said, said


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("shuffle_is_no_barrier", "(reads|writes) shared memory .* has (written|read)"),
        ("matrix_without_barrier", "reads shared memory .* has written"),
        ("copy_without_barrier", "(reads|writes) shared memory .* has (written|read)"),
        ("overwritten_while_read", "(reads|writes) shared memory .* has (written|read)"),
        ("two_writers", "writes global memory .* of block 0 has written"),
        ("last_block_without_fence", "reads global memory .* of block 0 has written"),
    ],
)
def test_races_are_seen_whatever_the_order(race_checked_program: Path, mistake: str, message: str) -> None:
    said = run(race_checked_program, mistake)
    assert re.search(f"race: it {message}, with no barrier in between", said), said
    if shutil.which("addr2line") is not None:
        assert len(re.findall(r"(now|before): .*mistakes\.cu:\d+", said)) == 2, said


@pytest.mark.parametrize("mistake", ["unwritten_shared", "left_by_another_block"])
def test_shared_memory_is_written_before_it_is_read(race_checked_program: Path, mistake: str) -> None:
    said = run(race_checked_program, mistake)
    assert re.search(
        r"block \(1, 0, 0\).*it reads shared memory at .* that no thread of the block has written", said
    )


@pytest.mark.parametrize("kernel", ["ordered_by_barriers", "last_block"])
def test_barriers_and_fences_order(race_checked_program: Path, kernel: str) -> None:
    done = subprocess.run([race_checked_program, kernel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stacks_of_the_system(portable_program: Path) -> None:
    done = subprocess.run([portable_program, "ordered_by_barriers"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has diverged" in run(portable_program, "diverged_shuffle")
