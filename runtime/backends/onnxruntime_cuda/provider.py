"""ONNX Runtime's CUDA provider: whether it is here, and if not, exactly what is missing."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
from pathlib import Path
from types import ModuleType

from q2export.errors import MissingDependencyError, PackageError, Q2ExportError
from q2export.package.manifest import installed_versions
from q2export.runtime.backends.cuda.runtime import CudaRuntime, Device
from q2export.runtime.onnxruntime_import import import_onnxruntime

PROVIDER = "CUDAExecutionProvider"
_SHARED, _LIBRARY = "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31' cuda-bindings"
_SWITCH = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {_INSTALL}"
OLDEST = (8, 0)
"""Compute capability that our kernels begin with."""

_log = logging.getLogger(__name__)


def import_with_cuda() -> ModuleType:
    """Import ONNX Runtime, with the libraries of CUDA that its provider needs.

    Raises:
        MissingDependencyError: it is not installed, or it is the one for the CPU; says how to change that.
    """
    try:
        ort = import_onnxruntime()
    except ImportError as error:
        raise MissingDependencyError(
            f"running an engine for ONNX Runtime on CUDA needs onnxruntime-gpu, and no ONNX Runtime can be "
            f"imported ({error}); install it with: {_INSTALL}"
        ) from error
    if PROVIDER not in ort.get_available_providers():
        found = installed_versions(("onnxruntime", "onnxruntime-gpu"))
        both = (
            " (both are installed, and the one for the CPU has overwritten files)" if len(found) > 1 else ""
        )
        raise MissingDependencyError(
            f"running an engine for ONNX Runtime on CUDA needs onnxruntime-gpu; found "
            f"{' and '.join(map(' '.join, found.items())) or ort.__version__}{both}, "
            f"which has no {PROVIDER}. Both install the module onnxruntime, so change them with: {_SWITCH}"
        )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # what it has to say, it prints
        ort.preload_dlls()
    for line in said.getvalue().splitlines():
        _log.info("onnxruntime.preload_dlls: %s", line)
    return ort


def select_gpu(cuda: CudaRuntime) -> Device:
    """Choose the thread's current GPU.

    Raises:
        PackageError: our kernels are not for it.
    """
    device = cuda.select(None)
    major, minor = (int(part) for part in device.compute_capability.split("."))
    if (major, minor) < OLDEST:
        raise PackageError(
            f"{device.name} has compute capability {device.compute_capability}; engines for ONNX Runtime on "
            f"CUDA need {OLDEST[0]}.{OLDEST[1]} or later"
        )
    return device


def why_not_run() -> str | None:
    """Why this machine cannot run engines for ONNX Runtime on CUDA; None where it can, as far as is known."""
    try:
        import_with_cuda()
        select_gpu(CudaRuntime())
    except Q2ExportError as error:
        return str(error)
    return None


def check_provider(ort: ModuleType, used: list[str]) -> None:
    """Refuse a session that does not run on the GPU: ONNX Runtime goes on without a provider it cannot load.

    Args:
        ort: the module.
        used: the session's providers.

    Raises:
        PackageError: saying which library is missing.
    """
    if PROVIDER in used:
        return
    raise PackageError(
        f"ONNX Runtime {ort.__version__} has a {PROVIDER}, but cannot use it: "
        f"{why_not_loaded(ort) or 'its log says why'}. It needs the CUDA and cuDNN libraries it was built "
        "for (onnxruntime-gpu 1.31: CUDA 13, cuDNN 9), which the nvidia-*-cu13 packages have, those of "
        f"PyTorch included: {_INSTALL}"
    )


def why_not_loaded(ort: ModuleType) -> str | None:
    """What the system says of the provider's library; None if it can be loaded."""
    folder = Path(str(ort.__file__)).parent / "capi"
    try:
        ctypes.CDLL(str(folder / _SHARED), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARY))
    except OSError as error:
        return str(error)
    return None
