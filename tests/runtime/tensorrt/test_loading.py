"""What is refused at load, and how: wrong library, wrong GPU, no GPU, an engine of something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from q2export.contracts import opspec
from q2export.errors import GenerationError, MissingDependencyError, PackageError
from q2export.package.manifest import TensorRTInfo
from q2export.runtime.backends.cuda import runtime as cuda_module
from q2export.runtime.backends.cuda.runtime import CudaRuntime
from q2export.runtime.backends.tensorrt.compatibility import Found, check_compatible
from q2export.runtime.backends.tensorrt.engine_file import load_engine
from tests.runtime.tensorrt.fakes import DECODE, PREFILL, TRT, FakeFile, engine_info, ranges

BUILT = TensorRTInfo("rtx", "1.7.1.116", "8.0", opspec.CONTRACT_VERSION, False, False)
LASTING = dataclasses.replace(BUILT, version_compatible=True)
FOUND = Found("1.7.1.116", "NVIDIA A100", "8.0")
REBUILD = "q2export build --model m --profile p --output o --overwrite"


def test_an_engine_for_what_is_at_hand() -> None:
    check_compatible("rank0.engine", BUILT, FOUND, REBUILD)


@pytest.mark.parametrize(
    ("built", "found"),
    [
        (BUILT, dataclasses.replace(FOUND, builder_version="1.8.0.1")),
        (BUILT, dataclasses.replace(FOUND, gpu="NVIDIA L4", compute_capability="8.9")),
        (LASTING, dataclasses.replace(FOUND, gpu="NVIDIA L4", compute_capability="8.9")),
        (LASTING, dataclasses.replace(FOUND, builder_version="1.6.9")),
        (LASTING, dataclasses.replace(FOUND, builder_version="2.0.0")),
    ],
)
def test_a_mismatch_names_both_sides_and_the_command(built: TensorRTInfo, found: Found) -> None:
    with pytest.raises(PackageError) as caught:
        check_compatible("p/rank0.engine", built, found, REBUILD)
    message = str(caught.value)
    assert message.startswith("p/rank0.engine: built with TensorRT-RTX 1.7.1.116 for compute capability 8.0;")
    capability = f"(compute capability {found.compute_capability})"
    assert f"found TensorRT-RTX {found.builder_version} and {found.gpu} {capability}" in message
    assert message.endswith(REBUILD)


def test_plugins_of_another_contract_are_refused() -> None:
    built = dataclasses.replace(BUILT, plugin_contract_version=opspec.CONTRACT_VERSION + 1)
    with pytest.raises(
        PackageError,
        match=f"built for version {opspec.CONTRACT_VERSION + 1} of the custom ops, this q2export has version",
    ):
        check_compatible("rank0.engine", built, FOUND, REBUILD)


def test_a_version_compatible_engine_runs_in_later_versions() -> None:
    found = dataclasses.replace(FOUND, builder_version="1.10.0")
    check_compatible("rank0.engine", LASTING, found, REBUILD)


def test_without_a_gpu_it_says_so() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    try:
        CudaRuntime()
    except PackageError as error:
        assert str(error).startswith("no NVIDIA GPU can be used here (cudaError")
    else:
        pytest.skip("this machine has a GPU")


def test_without_cuda_bindings_it_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match=r"cuda-bindings.*pip install cuda-bindings"):
        CudaRuntime()


def runtime_without_gpu() -> CudaRuntime:
    """All of the real runtime but the check for a GPU."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    runtime = CudaRuntime.__new__(CudaRuntime)
    runtime._api = __import__("cuda.bindings.runtime", fromlist=["runtime"])
    if runtime._api.cudaGetDeviceCount()[1]:
        pytest.skip("this machine has a GPU")
    return runtime


@pytest.mark.parametrize(
    ("method", "arguments", "call"),
    [
        ("select", ("8.0",), "cudaGetDevice"),
        ("free_memory", (), "cudaMemGetInfo"),
        ("allocate", (1 << 20,), "cudaMalloc of 1,048,576 bytes"),
        ("allocate_host", (4096,), "cudaMallocHost of 4,096 bytes"),
        ("create_stream", (), "cudaStreamCreateWithFlags"),
        ("upload", (0, 0, 8, 0), "cudaMemcpyAsync"),
        ("download", (0, 0, 8, 0), "cudaMemcpyAsync"),
        ("copy_strided", (0, 0, 16, 8, 2, 0), "cudaMemcpy2DAsync"),
        ("synchronize", (0,), "cudaStreamSynchronize"),
        ("capture", (lambda: None, 0), "cudaStreamBeginCapture"),
        ("launch", (0, 0), "cudaGraphLaunch"),
    ],
)
def test_calls_reach_the_real_library(method: str, arguments: tuple[Any, ...], call: str) -> None:
    """Its argument types are right, and a failure says which call failed, and why."""
    with pytest.raises(GenerationError, match=rf"^CUDA: {call} failed with cudaError\w+$"):
        getattr(runtime_without_gpu(), method)(*arguments)


def runtime_with(capabilities: list[tuple[int, int]]) -> tuple[CudaRuntime, SimpleNamespace]:
    """The runtime over a made-up library with some GPUs, the second of which is current, if there is one."""
    api = SimpleNamespace(cudaError_t=SimpleNamespace(cudaSuccess=0), current=min(1, len(capabilities) - 1))

    def set_device(index: int) -> tuple[int]:
        api.current = index
        return (0,)

    def properties(index: int) -> tuple[int, object]:
        major, minor = capabilities[index]
        return 0, SimpleNamespace(name=f"GPU {index}".encode() + b"\0\0", major=major, minor=minor)

    api.cudaGetDevice = lambda: (0, api.current)
    api.cudaGetDeviceCount = lambda: (0, len(capabilities))
    api.cudaSetDevice, api.cudaGetDeviceProperties = set_device, properties
    runtime = CudaRuntime.__new__(CudaRuntime)
    runtime._api = api
    return runtime, api


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ([(8, 0)], 0),
        ([(8, 0), (8, 0)], 1),  # the current one
        ([(8, 0), (8, 9)], 0),  # another, where the current one cannot run the engine
        ([(8, 9), (9, 0), (8, 0), (8, 0)], 2),
        ([(8, 9), (9, 0)], 1),  # none can: the current one is named
    ],
)
def test_the_gpu_that_can_run_the_engine_is_chosen(capabilities: list[tuple[int, int]], chosen: int) -> None:
    runtime, api = runtime_with(capabilities)
    major, minor = capabilities[chosen]
    device = runtime.select("8.0")
    assert (device.name, device.compute_capability) == (f"GPU {chosen}", f"{major}.{minor}")
    before = api.current
    with pytest.raises(ValueError, match="stop"), runtime.selected():
        assert api.current == chosen
        raise ValueError("stop")
    assert api.current == before


def trt_returning(file: object, message: str = "") -> Any:
    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data: object) -> object:
            assert bytes(data) == b"engine"  # type: ignore[call-overload]
            if message:
                self.logger.log(1, message)
            return file

    return SimpleNamespace(ILogger=ILogger, Runtime=Runtime, **vars(TRT))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rank0.engine").write_bytes(b"engine")
    return tmp_path / "rank0.engine"


def load(path: Path, file: object, message: str = "") -> Any:
    return load_engine(path, engine_info(), trt_returning(file, message), BUILT, FOUND, REBUILD)


def test_the_engine_of_the_manifest(path: Path) -> None:
    found = load(path, FakeFile(engine_info(), [PREFILL, DECODE]))
    assert [one.sequence.max for one in found.profiles] == [8, 1]


def test_what_the_library_refuses_is_told_with_its_reason(path: Path) -> None:
    with pytest.raises(
        PackageError, match=r"found TensorRT-RTX .* \(the plan is corrupt\)\. .*q2export build"
    ):
        load(path, None, "the plan is corrupt")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("past_key.2", {"dtype": "float16"}, r"past_key.2: expected input float32\[.*found input float16\["),
        ("logits", {"shape": (-1, -1, 38)}, r"logits: expected .*\[-1, -1, 37\], found .*\[-1, -1, 38\]"),
        ("input_ids", {"dtype": "int32"}, "input_ids: expected input int64.*found input int32"),
        ("past_lengths", {"on_device": False}, r"past_lengths: .*found input int64\[-1\] in host memory"),
    ],
)
def test_another_input_or_output_is_refused(
    path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    file = FakeFile(engine_info(), [PREFILL, DECODE])
    file.tensors[name] = dataclasses.replace(file.tensors[name], **changes)
    with pytest.raises(PackageError, match=message):
        load(path, file)


def test_a_missing_layer_is_refused(path: Path) -> None:
    file = FakeFile(engine_info(), [PREFILL, DECODE])
    del file.tensors["present_value.2"]
    with pytest.raises(PackageError, match=r"present_value\.2: expected output .*found none of that name"):
        load(path, file)


def test_a_cache_that_lies_in_another_input_is_refused(path: Path) -> None:
    file = FakeFile(engine_info(), [PREFILL, DECODE])
    file.aliases["present_value.1"] = "past_key.1"
    with pytest.raises(
        PackageError, match=r"present_value.1 must update past_value.1 .* memory with past_key.1;"
    ):
        load(path, file)


@pytest.mark.parametrize("answer", [None, ""])
def test_an_engine_that_does_not_tell_the_aliases_of_plugins_is_taken(path: Path, answer: str | None) -> None:
    file = FakeFile(engine_info(), [PREFILL, DECODE])
    file.aliases = dict.fromkeys(file.aliases, answer)
    assert len(load(path, file).profiles) == 2


@pytest.mark.parametrize(("batch", "rows"), [((2, 4), 1), ((1, 3), 4)])
def test_profiles_that_do_not_keep_the_manifest_promise_are_refused(
    path: Path, batch: tuple[int, int], rows: int
) -> None:
    file = FakeFile(engine_info(), [ranges(batch, (1, 8), (1, 8), (1, 64))])
    with pytest.raises(PackageError, match=f"no optimization profile takes a batch of {rows} with"):
        load(path, file)


def test_the_module_is_imported_without_cuda() -> None:
    assert cuda_module.__name__ == "q2export.runtime.backends.cuda.runtime"


def test_an_empty_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.engine").touch()
    with pytest.raises(
        PackageError, match=r"empty\.engine: expected an engine, found an empty file; rebuild"
    ):
        load_engine(tmp_path / "empty.engine", engine_info(), trt_returning(None), BUILT, FOUND, REBUILD)
