"""What is said where an engine for ONNX Runtime on CUDA cannot run, and how its session is opened."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from q2export.errors import MissingDependencyError, PackageError
from q2export.runtime.backends.cuda.runtime import Device
from q2export.runtime.backends.onnxruntime_cuda import open as opening
from q2export.runtime.backends.onnxruntime_cuda import provider
from q2export.runtime.backends.onnxruntime_cuda.provider import PROVIDER
from q2export.runtime.onnxruntime_import import import_onnxruntime
from tests.runtime.tensorrt.fakes import FakeCuda

REAL = import_onnxruntime()


class FakeOrt:
    """ONNX Runtime with CUDA, of which a session can be had or not."""

    __version__ = "1.31.1"
    __file__ = "/nowhere/onnxruntime/__init__.py"
    SessionOptions, RunOptions = REAL.SessionOptions, REAL.RunOptions
    GraphOptimizationLevel = REAL.GraphOptimizationLevel

    def __init__(self, *, used: str = PROVIDER, capture: str = "", error: str = "") -> None:
        self.used = used
        self.capture = capture
        self.error = error
        self.options: list[dict[str, str]] = []

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, path: str, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        ((name, given),) = providers
        assert (name, enable_fallback) == (PROVIDER, 0)
        self.options.append(given)
        if self.error or (self.capture and given["enable_cuda_graph"] == "1"):
            raise RuntimeError(self.error or self.capture)
        return SimpleNamespace(get_providers=lambda: [self.used])


def opened(
    ort: FakeOrt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kernels: bool = False,
    own_kernels: bool = True,
) -> Any:
    library = tmp_path / "libq2export_kernels.so"
    if kernels:
        monkeypatch.setattr(FakeOrt, "SessionOptions", RegisteringOptions)
        library.touch()
    monkeypatch.setattr(opening, "LIBRARY", library)
    return opening._open_session(ort, tmp_path / "model.onnx", 1, 77, own_kernels)  # type: ignore[arg-type]


class RegisteringOptions(REAL.SessionOptions):  # type: ignore[misc]
    """Takes a library without loading it."""

    def register_custom_ops_library(self, path: str) -> None:
        assert path.endswith("libq2export_kernels.so")


def test_the_session_is_ours_in_stream_and_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = FakeOrt()
    _, captures = opened(ort, tmp_path, monkeypatch, kernels=True)
    assert captures
    (options,) = ort.options
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "77")
    assert options["enable_cuda_graph"] == "1"
    run = opening.run_options(REAL)
    assert run.get_run_config_entry("gpu_graph_id") == "-1"
    assert run.get_run_config_entry("disable_synchronize_execution_providers") == "1"


def test_a_graph_that_cannot_be_captured_runs_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ort = FakeOrt(capture="This session cannot use the graph capture feature as requested by the user")
    _, captures = opened(ort, tmp_path, monkeypatch, kernels=True)
    assert not captures
    assert [given["enable_cuda_graph"] for given in ort.options] == ["1", "0"]
    assert "decode steps run without a CUDA graph" in caplog.text


def test_without_our_kernels_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, captures = opened(FakeOrt(), tmp_path, monkeypatch)
    assert not captures
    assert "running without the CUDA kernels of q2export: correct, and many times slower" in caplog.text
    caplog.clear()
    ort = FakeOrt()
    opened(ort, tmp_path, monkeypatch, kernels=True, own_kernels=False)
    assert (ort.options[0]["enable_cuda_graph"], caplog.text) == ("0", "")


def test_a_session_without_the_provider_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would go on on the CPU; the system names the library that is missing."""
    ort = FakeOrt(used="CPUExecutionProvider")
    with pytest.raises(PackageError, match=r"cannot use it: .*libonnxruntime_providers_.*CUDA 13, cuDNN 9"):
        opened(ort, tmp_path, monkeypatch)
    with pytest.raises(
        PackageError, match=r"cannot load .*model\.onnx on CUDA: no such node; its .*libonnxrun"
    ):
        opened(FakeOrt(error="no such node"), tmp_path, monkeypatch)


def test_what_the_import_prints_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provider, "import_onnxruntime", FakeOrt)
    with caplog.at_level(logging.INFO):
        provider.import_with_cuda()
    assert "Failed to load libcudnn.so.9" in caplog.text
    assert capsys.readouterr().out == ""


def test_no_onnxruntime_and_two_of_them_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(provider, "import_onnxruntime", absent)
    with pytest.raises(MissingDependencyError, match=r"no ONNX Runtime can be imported .*onnxruntime-gpu"):
        provider.import_with_cuda()
    cpu = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"], __version__="1.31.1")
    monkeypatch.setattr(provider, "import_onnxruntime", lambda: cpu)
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(provider, "installed_versions", lambda names: both)
    with pytest.raises(MissingDependencyError, match="the one for the CPU has overwritten files"):
        provider.import_with_cuda()


def test_old_gpus_are_refused() -> None:
    cuda: Any = FakeCuda()
    cuda.select = lambda capability: Device("Tesla T4", "7.5")
    with pytest.raises(PackageError, match=r"Tesla T4 has compute capability 7\.5; .* need 8\.0 or later"):
        provider.select_gpu(cuda)
    cuda.select = lambda capability: Device("B200", "10.0")
    assert provider.select_gpu(cuda).name == "B200"


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from q2export.plugins.tensorrt.loader import gpu_present

    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if gpu_present():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(provider, "import_onnxruntime", FakeOrt)
    assert "no NVIDIA GPU can be used here" in (provider.why_not_run() or "")
