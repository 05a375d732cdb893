"""What this machine offers: the facts behind ``q2export doctor``. Nothing is loaded but ONNX Runtime."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from q2export.contracts.commands import install_command
from q2export.contracts.profile import OLDEST_GPU
from q2export.package.manifest import installed_versions
from q2export.runtime.onnxruntime_import import import_onnxruntime
from q2export.version import __version__

_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "onnx-ir",
    "polygraphy",
    "numpy",
    "tokenizers",
    "transformers",
    "huggingface-hub",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "cuda-bindings",
)
_TO_BUILD = ("torch", "onnx", "onnx-ir", "polygraphy")
_TENSORRT = ("tensorrt", "tensorrt-rtx-cu13-bindings")
_QUERY_SECONDS = 10


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as ``nvidia-smi`` describes it; memory in MiB."""

    name: str
    compute_capability: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class Capability:
    """One thing q2export can do, whether it can be done here, and what is missing if not."""

    what: str
    available: bool
    missing: str = ""


@dataclass(frozen=True)
class Environment:
    """A machine and what is installed on it.

    Attributes:
        cores: usable by this process. memory_bytes: of the machine; None where it is not known.
        packages: installed versions, by distribution.
        providers: execution providers of ONNX Runtime; empty if it is not installed.
        kernels: what the CUDA kernels were built with, or why there are none.
        cpu_kernels: likewise, the kernels for ONNX Runtime on the CPU.
        problems: what is wrong with the installation, one sentence each.
    """

    q2export: str
    python: str
    platform: str
    processor: str
    cores: int
    memory_bytes: int | None
    available_memory_bytes: int | None
    packages: Mapping[str, str]
    providers: tuple[str, ...]
    kernels: str
    cpu_kernels: str
    gpus: tuple[Gpu, ...]
    capabilities: tuple[Capability, ...]
    problems: tuple[str, ...]


def examine() -> Environment:
    """Look at this machine; takes well under a second, more where ``nvidia-smi`` is slow."""
    from q2export.plugins.kernel_build import CPU_RECORD, recorded

    packages = installed_versions(_PACKAGES)
    providers, provider_problem = _providers()
    memory = _meminfo()
    found_gpus = gpus()
    return Environment(
        q2export=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory.get("MemTotal"),
        available_memory_bytes=memory.get("MemAvailable"),
        packages=packages,
        providers=providers,
        kernels=recorded(),
        cpu_kernels=recorded(CPU_RECORD),
        gpus=found_gpus,
        capabilities=(
            *_capabilities(packages, providers),
            _runs_tensorrt(packages, found_gpus),
            _runs_onnxruntime_cuda(packages, providers, found_gpus),
        ),
        problems=(*provider_problem, *_conflicts(packages)),
    )


def _capabilities(packages: Mapping[str, str], providers: tuple[str, ...]) -> Iterator[Capability]:
    from q2export.plugins.kernel_build import CPU_LIBRARY, CPU_RECORD, recorded

    missing = [name for name in _TO_BUILD if name not in packages]
    export_hint = f"{', '.join(missing)}: {install_command('export')}" if missing else ""
    runs = "CPUExecutionProvider" in providers
    run_hint = "" if runs else "a working onnxruntime: pip install onnxruntime"
    yield Capability("run engines on the CPU", runs, run_hint)
    fast, built = CPU_LIBRARY.is_file(), f"the CPU kernels: {recorded(CPU_RECORD)}"
    yield Capability("run them at full speed", runs and fast, run_hint or ("" if fast else built))
    yield Capability("export ONNX (for any target)", not missing, export_hint)
    yield Capability("build and verify engines for the CPU", runs and not missing, export_hint or run_hint)
    built_with = any(name in packages for name in _TENSORRT)
    engine_hint = "" if built_with else f"TensorRT-RTX: {install_command('rtx')}"
    yield Capability("build TensorRT engines", built_with and not missing, export_hint or engine_hint)
    hub = "huggingface-hub" in packages
    yield Capability("download models by hub id", hub, "" if hub else "pip install huggingface-hub")


def _runs_tensorrt(packages: Mapping[str, str], found_gpus: tuple[Gpu, ...]) -> Capability:
    from q2export.plugins.kernel_build import LIBRARY, recorded

    missing = [] if found_gpus else ["an NVIDIA GPU"]
    if "cuda-bindings" not in packages or not any(name in packages for name in _TENSORRT):
        missing.append(f"TensorRT and cuda-bindings: {install_command('rtx')}")
    if not LIBRARY.is_file():
        missing.append(f"the CUDA kernels: {recorded()}")
    return Capability("run TensorRT engines", not missing, "; ".join(missing))


def _runs_onnxruntime_cuda(
    packages: Mapping[str, str], providers: tuple[str, ...], found_gpus: tuple[Gpu, ...]
) -> Capability:
    from q2export.plugins.kernel_build import LIBRARY, recorded

    missing = []
    if not any(_is_recent(gpu) for gpu in found_gpus):
        missing.append(f"an NVIDIA GPU of compute capability {OLDEST_GPU} or later")
    if "CUDAExecutionProvider" not in providers:
        missing.append("onnxruntime-gpu in place of onnxruntime (docs/installation.md)")
    if "cuda-bindings" not in packages:
        missing.append("cuda-bindings: pip install cuda-bindings")
    if not LIBRARY.is_file():
        missing.append(f"the CUDA kernels: {recorded()}")
    return Capability("run engines for ONNX Runtime on CUDA", not missing, "; ".join(missing))


def _is_recent(gpu: Gpu) -> bool:
    major, _, minor = gpu.compute_capability.partition(".")
    oldest = tuple(int(part) for part in OLDEST_GPU.split("."))
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= oldest


def _conflicts(packages: Mapping[str, str]) -> Iterator[str]:
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )


def _providers() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Execution providers of ONNX Runtime, and what is wrong with it."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        return (), (f"onnxruntime cannot be imported: {error}",)
    return tuple(onnxruntime.get_available_providers()), ()


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        listed = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(parse_gpus(listed.stdout))


def parse_gpus(listing: str) -> Iterator[Gpu]:
    """Read lines such as ``NVIDIA H200, 9.0, 143771, 570.86``; others are left out."""
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[2].isdigit():
            yield Gpu(fields[0], fields[1], int(fields[2]), fields[3])


def _processor() -> str:
    """Model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def available_memory_bytes() -> int | None:
    """RAM that could be used without swapping, in bytes; None where it is not known."""
    return _meminfo().get("MemAvailable")


def _meminfo() -> dict[str, int]:
    """``/proc/meminfo`` in bytes; empty where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs if len(pair) == 3 and pair[2] == "kB"}
