"""Loading an engine for ONNX Runtime onto the GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from q2export.errors import PackageError, Q2ExportError
from q2export.package.manifest import EngineInfo
from q2export.plugins.kernel_build import LIBRARY, recorded
from q2export.runtime.backends.cuda.backend import CudaBackend
from q2export.runtime.backends.cuda.runtime import CudaRuntime
from q2export.runtime.backends.onnxruntime_cuda.executor import OnnxRuntimeExecutor
from q2export.runtime.backends.onnxruntime_cuda.provider import (
    PROVIDER,
    check_provider,
    import_with_cuda,
    select_gpu,
    why_not_loaded,
)
from q2export.runtime.backends.onnxruntime_session import check_signature

_ERRORS_ONLY = 3
_RUN_ENTRIES = {
    "disable_synchronize_execution_providers": "1",  # a run returns before the GPU is done with it
    "gpu_graph_id": "-1",  # graphs are captured by the backend, with the copies before and after the run
}
_NOT_CAPTURABLE = "graph capture"
"""In what ONNX Runtime says of a session that ``enable_cuda_graph`` cannot be had for."""

_log = logging.getLogger(__name__)


def open_backend(folder: Path, info: EngineInfo, max_logits: int, *, own_kernels: bool = True) -> CudaBackend:
    """Load the engine of a package onto the GPU.

    Args:
        folder: the package.
        info: from its manifest.
        max_logits: positions per sequence whose logits one call returns, of its profile.
        own_kernels: run our ops by our kernels, not by their function bodies on ONNX Runtime's: the peer.

    Raises:
        MissingDependencyError: onnxruntime-gpu or cuda-bindings is not installed.
        PackageError: there is no GPU that it runs on, a library of CUDA is missing, or the graph cannot be
            loaded or is not of the engine the manifest describes.
    """
    ort = import_with_cuda()
    cuda = CudaRuntime()
    device = select_gpu(cuda)
    path = folder / info.file
    with cuda.selected():
        stream = cuda.create_stream()
        session, captures = _open_session(ort, path, device.index, stream, own_kernels)
        check_signature(session, path, info)
        executor = OnnxRuntimeExecutor(
            info,
            session,
            run_options(ort),
            max_logits=max_logits,
            device=("cuda", device.index),
            captures=captures,
        )
        return CudaBackend(info, executor, cuda, stream)


def run_options(ort: ModuleType) -> Any:
    """Options of every run."""
    options = ort.RunOptions()
    for key, value in _RUN_ENTRIES.items():
        options.add_run_config_entry(key, value)
    return options


def provider_options(index: int, stream: int, *, captures: bool) -> dict[str, str]:
    """Options of the provider.

    With ``enable_cuda_graph`` it refuses a graph that could not be captured: one in which something is copied
    between the CPU and the GPU, or runs on the CPU besides computing shapes.
    """
    return {
        "device_id": str(index),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(captures)),
    }


def session_options(ort: ModuleType) -> Any:
    """Options of the session: the lowering has chosen every op, and weights stay as they lie."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False  # shapes change from step to step
    options.enable_mem_reuse = (
        False  # its plan takes time quadratic in the nodes; the arena reuses memory, too
    )
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def _open_session(
    ort: ModuleType, path: Path, index: int, stream: int, own_kernels: bool
) -> tuple[Any, bool]:
    """The session, and whether its decode steps can be captured."""
    captures = own_kernels and LIBRARY.is_file()
    library = LIBRARY if captures else None
    if own_kernels and library is None:
        _log.warning(
            "running without the CUDA kernels of q2export: correct, and many times slower (%s: %s); see "
            "docs/installation.md",
            LIBRARY,
            recorded(),
        )
    try:
        try:
            return _session(ort, path, library, provider_options(index, stream, captures=captures)), captures
        except Exception as error:  # ORT's exceptions share no base class
            if not captures or _NOT_CAPTURABLE not in str(error):
                raise
            _log.warning("decode steps run without a CUDA graph, which ONNX Runtime refuses: %s", error)
        return _session(ort, path, library, provider_options(index, stream, captures=False)), False
    except Q2ExportError:
        raise
    except Exception as error:
        # Without its provider ONNX Runtime looks for CPU kernels, and finds none for our ops.
        why = why_not_loaded(ort)
        also = "" if why is None else f"; its {PROVIDER} cannot be loaded: {why}"
        raise PackageError(
            f"ONNX Runtime {ort.__version__} cannot load {path} on CUDA: {error}{also}"
        ) from error


def _session(ort: ModuleType, path: Path, library: Path | None, provider: Mapping[str, str]) -> Any:
    options = session_options(ort)
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(
        str(path), options, providers=[(PROVIDER, dict(provider))], enable_fallback=0
    )
    check_provider(ort, session.get_providers())
    return session
