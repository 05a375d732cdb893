"""What the processor can do, as far as a choice of the runtime depends on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from q2export.errors import PackageError

_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni"}


def has_exact_int8_matmuls(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether ONNX Runtime's matmuls of uint8 activations and int8 weights are exact here.

    On x86 without the VNNI instructions its kernels add pairs of products in 16 bits, which saturate: twice
    255 * 127 is 64,770. ARM's have 32 bits throughout. Where it cannot be told, the answer is no.

    Args:
        cpuinfo: where Linux lists the processor's features.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?".
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[-1].split()}
    return bool(flags & _DOT_PRODUCTS)


def processors() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0))


def check_threads(threads: object) -> None:
    """Refuse a number of CPU threads that makes no sense here: more than processors only wait for each other.

    Raises:
        PackageError: not an integer from 0 (one per core) to the number of processors.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= processors():
        raise PackageError(
            f"threads must be an integer from 0 (one per core) to {processors()}, the processors of this "
            f"machine that may be used, found {threads!r}"
        )
