"""The CUDA kernels of ``plugins/csrc``, compiled for the host, and called on torch tensors.

``host_cuda`` stands in for the CUDA headers; the sources are those that nvcc compiles, unchanged.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_float, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from q2export.plugins.tensorrt.kernels import AttentionDesc, AttentionTensors, MoeDesc, RotaryDesc

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "plugins" / "csrc"
HOST_CUDA = Path(__file__).resolve().parent / "host_cuda"
KERNEL_SOURCES = sorted(CSRC.glob("kernels/*/*.cu"))
MACHINE_SOURCES = sorted(HOST_CUDA.glob("machine/*.cpp"))
INCLUDES = [f"-I{CSRC / 'include'}", f"-I{CSRC / 'kernels'}"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # of nvcc: #pragma unroll
COMPILE_JOBS = 2

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ALIGNMENT = 256


def run_compiler(command: Sequence[str]) -> None:
    """Run a compiler; what it says is the failure's message."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@dataclass(frozen=True)
class HostFlags:
    """How to compile CUDA sources for the host.

    Attributes:
        common: flags of every file and of the linker.
        kernels: flags of the CUDA sources alone.
        link: flags of the linker alone.
    """

    common: Sequence[str] = ("-O1",)
    kernels: Sequence[str] = ()
    link: Sequence[str] = ("-shared",)


SANITIZED = HostFlags(("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
RACES = HostFlags(("-O1", "-g"), kernels=("-fsanitize=thread",))
"""Its calls end in ``host_cuda/machine/races.cpp``; gcc's own run-time library takes no part."""


def compile_host_library(
    output: Path, flags: HostFlags = HostFlags(), sources: Sequence[Path] = KERNEL_SOURCES
) -> Path:
    """Compile CUDA sources, all kernels unless told, for the host into the library ``output``.

    Object files stay beside it, for other libraries of the same folder: nothing is compiled twice.
    """
    command = ["g++", "-std=c++17", "-fPIC", *WARNINGS, f"-I{HOST_CUDA}", *INCLUDES, *flags.common]

    def compile_object(source: Path) -> Path:
        own = [*command, *(() if source in MACHINE_SOURCES else flags.kernels)]
        digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:12]
        target = output.parent / f"{source.parent.name}-{source.stem}-{digest}.o"
        with locked(target):
            if not target.exists():
                partial = target.with_suffix(".partial")
                run_compiler([*own, "-c", "-x", "c++", str(source), "-o", str(partial)])
                partial.rename(target)
        return target

    with ThreadPoolExecutor(COMPILE_JOBS) as pool:
        objects = list(pool.map(compile_object, (*MACHINE_SOURCES, *sources)))
    run_compiler([*command, *flags.link, *map(str, objects), "-ldl", "-o", str(output)])
    return output


def compile_once(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    flags: HostFlags = HostFlags(),
    sources: Sequence[Path] = KERNEL_SOURCES,
) -> Path:
    """:func:`compile_host_library` once for all workers of pytest-xdist: one compiles, the others wait."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    output = folder / name
    with locked(output):
        if not output.exists():
            compile_host_library(output, flags, sources)
    return output


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads from making the same file."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class KernelError(Exception):
    """A kernel function refused; the message is that of ``q2export_last_error``."""


class HostKernels:
    """The functions of ``kernels.h`` on CPU tensors; each returns new tensors and leaves its arguments alone.

    Args:
        library: from :func:`compile_host_library`.
        device: where the library wants its tensors; ``tests/gpu`` has it compiled by nvcc, for ``cuda``.
    """

    def __init__(self, library: Path, device: str = "cpu") -> None:
        self.device = device
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_last_error.restype = c_char_p
        self.library.q2export_status_string.restype = c_char_p

    def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies on the device."""
        return [tensor.to(self.device, copy=True) for tensor in tensors]

    def check(self, status: int) -> None:
        if status:
            name = self.library.q2export_status_string(status).decode()
            raise KernelError(f"{name}: {self.library.q2export_last_error().decode()}")

    def workspace(self, op: str, desc: ctypes.Structure) -> Tensor:
        """A workspace full of NaN (0xff), with as many such bytes again behind it."""
        wanted = c_size_t(0)
        self.check(getattr(self.library, f"q2export_{op}_workspace_size")(byref(desc), byref(wanted)))
        storage = torch.full((wanted.value + 2 * ALIGNMENT,), 0xFF, dtype=torch.uint8, device=self.device)
        start = -storage.data_ptr() % ALIGNMENT
        return storage[start : start + wanted.value + ALIGNMENT]

    def call(self, op: str, desc: ctypes.Structure, arguments: Sequence[object]) -> None:
        workspace = self.workspace(op, desc)
        size = len(workspace) - ALIGNMENT
        tail = (c_void_p(workspace.data_ptr()), c_size_t(size), c_void_p(None))
        self.check(getattr(self.library, f"q2export_{op}")(byref(desc), *arguments, *tail))
        assert bool((workspace[size:] == 0xFF).all()), f"{op} writes beyond its workspace"

    def rotary_embedding(
        self,
        x: Tensor,
        position_ids: Tensor,
        inv_freq: Tensor,
        attention_factor: float,
        *,
        in_place: bool = False,
    ) -> Tensor:
        inputs = self.moved([x, position_ids, inv_freq])
        y = inputs[0] if in_place else torch.full_like(inputs[0], float("nan"))
        desc = RotaryDesc(*x.shape, DTYPES[x.dtype], attention_factor)
        self.call("rotary_embedding", desc, pointers(*inputs, y))
        return y.cpu()

    def attention(
        self,
        tensors: Sequence[Tensor],
        sliding_window: int = 0,
        rotation: tuple[Tensor, float] | None = None,
        *,
        scale: float,
        in_place: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q2GroupQueryAttention, or Q2RotaryAttention where ``rotation`` gives inv_freq and the factor."""
        query, key, value, past_key, past_value, past_lengths, query_lengths = self.moved(tensors)
        batch, sequence, heads, head_dim = query.shape
        kv_heads, capacity = past_key.shape[1:3]
        output = torch.full_like(query, float("nan"))
        past = (past_key, past_value)
        present = past if in_place else (torch.empty_like(past_key), torch.empty_like(past_value))
        desc = AttentionDesc(
            batch, sequence, capacity, heads, kv_heads, head_dim, sliding_window, DTYPES[query.dtype], scale
        )
        addresses = pointers(query, key, value, *past, past_lengths, query_lengths, output, *present)
        struct = byref(AttentionTensors(*addresses))
        if rotation is None:
            self.call("group_query_attention", desc, [struct])
        else:
            inv_freq, factor = rotation[0].to(self.device), rotation[1]
            self.call("rotary_attention", desc, [struct, *pointers(inv_freq), c_float(factor)])
        return output.cpu(), present[0].cpu(), present[1].cpu()

    def moe(
        self,
        hidden: Tensor,
        router_logits: Tensor,
        weights: Sequence[Sequence[Tensor]],
        top_k: int,
        norm_topk_prob: bool,
    ) -> Tensor:
        """``weights``: gate, up and down, one tensor per expert each."""
        experts, intermediate = len(weights[0]), weights[0][0].shape[0]
        inputs = self.moved([hidden, router_logits])
        weights = [self.moved(kind) for kind in weights]
        output = torch.full_like(inputs[0], float("nan"))
        desc = MoeDesc(*hidden.shape, intermediate, experts, top_k, norm_topk_prob, DTYPES[hidden.dtype])
        arrays = [(c_void_p * experts)(*pointers(*kind)) for kind in weights]
        self.call("moe", desc, [*pointers(*inputs), *arrays, *pointers(output)])
        return output.cpu()


def pointers(*tensors: Tensor) -> list[c_void_p]:
    """Addresses of dense tensors."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [c_void_p(tensor.data_ptr()) for tensor in tensors]
