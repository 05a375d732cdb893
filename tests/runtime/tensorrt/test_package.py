"""A real package with a TensorRT engine: found, read and checked, up to the GPU that is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

import q2export
from q2export.cli.main import main
from q2export.errors import PackageError
from q2export.package.manifest import EngineInfo
from q2export.package.reader import read_package
from q2export.runtime.backends.cuda.runtime import Device
from q2export.runtime.backends.tensorrt import executor
from q2export.runtime.backends.tensorrt.executor import make_backend
from tests.runtime.tensorrt.fakes import TRT, FakeCuda, FakeEngine, Range, loaded


class OtherGpu(FakeCuda):
    def select(self, compute_capability: str) -> Device:
        return Device("Fake L4", "8.9")


@pytest.fixture(scope="module")
def package(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt_rtx_bindings is not installed")
    output = tmp_path_factory.mktemp("packages") / "a100"
    overrides = {"builder": "rtx", "capacity.max": 128, "prefill_chunk": 32}
    built = q2export.build(checkpoints / "qwen2-tiny", output, profile="a100", overrides=overrides)
    return built.package


@pytest.fixture
def no_gpu() -> None:
    from q2export.plugins.tensorrt.loader import gpu_present

    if gpu_present():
        pytest.skip("this machine has a GPU")


def test_loading_says_that_there_is_no_gpu(package: Path, no_gpu: None) -> None:
    with pytest.raises(PackageError, match="no NVIDIA GPU can be used here"):
        q2export.load(package)


def test_verifying_says_so_too(
    package: Path, checkpoints: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(package), "--model", str(checkpoints / "qwen2-tiny")]) == 1
    assert "no NVIDIA GPU can be used here" in capsys.readouterr().err


def test_another_gpu_is_named_with_the_command_that_rebuilds(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "CudaRuntime", OtherGpu)
    with pytest.raises(PackageError) as caught:
        q2export.load(package)
    message = str(caught.value)
    assert "for compute capability 8.0; found TensorRT-RTX" in message
    assert "Fake L4 (compute capability 8.9)" in message
    assert "q2export build --model" in message and "--set capacity.max=128" in message


def test_the_backend_takes_every_step_the_profile_was_made_for(package: Path) -> None:
    """The ranges of a real profile, read by the backend."""
    manifest = read_package(package).manifest
    ranges = _ranges(package, manifest.engine)
    cuda = FakeCuda()
    backend = make_backend(manifest.engine, loaded(FakeEngine(cuda, ranges), ranges), cuda, TRT)
    assert (backend.prefill_chunk, backend.max_batch, backend.max_capacity) == (32, 8, 128)
    backend.new_cache(8, 128)


def _ranges(package: Path, engine: EngineInfo) -> list[dict[str, Range]]:
    """Smallest and largest shapes of each profile of the package, as the builder sets them."""
    found = []
    for step in read_package(package).manifest.built_for.step_ranges():
        shapes = {tensor.name: step.shapes(tensor.shape) for tensor in engine.signature.inputs}
        found.append({name: (smallest, largest) for name, (smallest, _, largest) in shapes.items()})
    return found
