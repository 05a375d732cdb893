"""``doctor``: the facts it finds here, and what it says of machines that are not here."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from q2export.cli.main import main
from q2export.contracts.commands import install_command
from q2export.inspect import machine as environment
from q2export.inspect.machine import Capability, Gpu, examine, parse_gpus
from q2export.plugins import kernel_build


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that exactly these distributions are installed (``_`` for ``-``)."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(environment, "installed_versions", lambda names: found)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert "CPUExecutionProvider" in found["providers"]
    assert 0 < found["available_memory_bytes"] <= found["memory_bytes"]
    on_a_gpu = ("run TensorRT engines", "run engines for ONNX Runtime on CUDA")
    assert all(each["available"] for each in found["capabilities"] if each["what"] not in on_a_gpu)
    assert main(["doctor"]) == 0
    assert "yes  build and verify engines for the CPU" in capsys.readouterr().out


def test_a_plain_installation_runs_engines_and_says_what_building_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, onnxruntime="1.31.1", onnx="1.23.2")
    available = {each.what: each for each in examine().capabilities}
    assert available["run engines on the CPU"].available
    build = available["build and verify engines for the CPU"]
    assert not build.available
    assert build.missing == f"torch, onnx-ir, polygraphy: {install_command('export')}"
    assert main(["doctor"]) == 0
    assert "no   build and verify engines for the CPU" in capsys.readouterr().out


def test_what_running_tensorrt_engines_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ability() -> Capability:
        (found,) = (each for each in examine().capabilities if each.what == "run TensorRT engines")
        return found

    library = tmp_path / "libq2export_kernels.so"
    monkeypatch.setattr(kernel_build, "LIBRARY", library)
    monkeypatch.setattr(environment, "gpus", tuple)
    install(monkeypatch, onnxruntime="1.31.1")
    assert ability().missing == (
        f"an NVIDIA GPU; TensorRT and cuda-bindings: {install_command('rtx')}; the CUDA kernels: "
        + kernel_build.recorded()
    )
    library.touch()
    install(monkeypatch, tensorrt="10.15.1", cuda_bindings="13.0.3")
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA H200", "9.0", 143771, "570.86"),))
    assert ability() == Capability("run TensorRT engines", True)


def test_what_running_engines_on_cuda_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ability() -> Capability:
        return examine().capabilities[-1]

    library = tmp_path / "libq2export_kernels.so"
    monkeypatch.setattr(kernel_build, "LIBRARY", library)
    monkeypatch.setattr(environment, "_providers", lambda: (("CPUExecutionProvider",), ()))
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA T4", "7.5", 15360, "570.86"),))
    install(monkeypatch, onnxruntime="1.31.1")
    assert ability().missing == (
        "an NVIDIA GPU of compute capability 8.0 or later; onnxruntime-gpu in place of onnxruntime "
        "(docs/installation.md); cuda-bindings: pip install cuda-bindings; the CUDA kernels: "
        + kernel_build.recorded()
    )
    library.touch()
    install(monkeypatch, onnxruntime_gpu="1.31.1", cuda_bindings="13.0.3")
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(environment, "_providers", lambda: (providers, ()))
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA B200", "10.0", 183359, "580.95"),))
    assert ability() == Capability("run engines for ONNX Runtime on CUDA", True)


def test_a_broken_onnxruntime_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = examine()
    assert found.providers == ()
    assert found.problems[0].startswith("onnxruntime cannot be imported")
    assert not found.capabilities[0].available


def test_two_onnxruntimes_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    assert main(["doctor"]) == 0
    assert "warning: onnxruntime and onnxruntime-gpu are both installed" in capsys.readouterr().err


def test_gpus_are_read_from_nvidia_smi() -> None:
    listing = "NVIDIA H200, 9.0, 143771, 570.86\nNVIDIA L4, 8.9, 23034, 570.86\n"
    assert list(parse_gpus(listing)) == [
        Gpu("NVIDIA H200", "9.0", 143771, "570.86"),
        Gpu("NVIDIA L4", "8.9", 23034, "570.86"),
    ]
    assert list(parse_gpus("No devices were found\n\nA, 9.0, [N/A], 1\n")) == []


@pytest.mark.parametrize(
    ("script", "count"), [("echo 'NVIDIA A100, 8.0, 81920, 550.1'", 1), ("echo failed; exit 9", 0)]
)
def test_gpus_of_a_machine_with_a_driver(
    script: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert len(examine().gpus) == count
