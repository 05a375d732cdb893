"""A GPU made of host memory on which ONNX Runtime's CPU provider runs what the backend enqueues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q2export.package.reader import Package
from q2export.runtime.backends.cuda.backend import CudaBackend
from q2export.runtime.backends.onnxruntime_cuda.executor import OnnxRuntimeExecutor
from q2export.runtime.backends.onnxruntime_cuda.open import run_options, session_options
from q2export.runtime.onnxruntime_import import import_onnxruntime
from tests.runtime.tensorrt.fakes import FakeCuda


class RecordedBinding:
    """What was bound last, by name: a call that is captured keeps what was bound then."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def bind_input(self, name: str, *place: Any) -> None:
        self.inputs[name] = place

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = place


class FakeGpuSession:
    """A session whose runs are work on the stream of a fake GPU."""

    def __init__(self, session: Any, cuda: FakeCuda, stream: int) -> None:
        self._session = session
        self._cuda = cuda
        self._stream = stream

    def io_binding(self) -> RecordedBinding:
        return RecordedBinding()

    def run_with_iobinding(self, recorded: RecordedBinding, options: Any) -> None:
        inputs, outputs = dict(recorded.inputs), dict(recorded.outputs)

        def work() -> None:
            binding = self._session.io_binding()
            for name, place in inputs.items():
                self._check(place)
                binding.bind_input(name, *place)
            for name, place in outputs.items():
                self._check(place)
                binding.bind_output(name, *place)
            self._session.run_with_iobinding(binding, options)

        self._cuda.enqueue("execute", work, self._stream)

    def _check(self, place: tuple[Any, ...]) -> None:
        address = place[-1]
        assert address % 256 == 0
        assert self._cuda.inside(self._cuda.device_memory, address, 1)


def backend_of(package: Package, library: Path | None) -> tuple[CudaBackend, FakeCuda]:
    """The backend over a package, with our ops from ``library``, or by their function bodies."""
    ort, cuda = import_onnxruntime(), FakeCuda()
    stream = cuda.create_stream()
    options = session_options(ort)
    if library is not None:
        options.register_custom_ops_library(str(library))
    manifest = package.manifest
    path = package.folder / manifest.engine.file
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    executor = OnnxRuntimeExecutor(
        manifest.engine,
        FakeGpuSession(session, cuda, stream),
        run_options(ort),
        max_logits=manifest.built_for.max_logits,
        device=("cpu", 0),
        captures=True,
    )
    return CudaBackend(manifest.engine, executor, cuda, stream), cuda
