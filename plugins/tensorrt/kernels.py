"""The CUDA kernels, called through their C ABI (``plugins/csrc/include/q2export/kernels.h``) with ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.errors import GenerationError, MissingDependencyError
from q2export.plugins import kernel_build
from q2export.plugins.tensorrt.fields import Attributes
from q2export.plugins.tensorrt.workspace import reserved_bytes

ABI_VERSION = 1
"""``Q2EXPORT_KERNELS_ABI_VERSION`` of the header that the structures below mirror."""

LIBRARY = kernel_build.LIBRARY
"""Where the build puts the library: beside the package that loads it."""


class RotaryDesc(ctypes.Structure):
    """``q2export_rotary_desc``."""

    _fields_ = (
        ("batch", c_int64),
        ("sequence", c_int64),
        ("num_heads", c_int32),
        ("head_dim", c_int32),
        ("dtype", c_int32),
        ("attention_factor", c_float),
    )


class AttentionDesc(ctypes.Structure):
    """``q2export_attention_desc``."""

    _fields_ = (
        ("batch", c_int64),
        ("sequence", c_int64),
        ("capacity", c_int64),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("sliding_window", c_int32),
        ("dtype", c_int32),
        ("scale", c_float),
    )


class AttentionTensors(ctypes.Structure):
    """``q2export_attention_tensors``: the seven inputs and three outputs that both attention ops share."""

    _fields_ = tuple((each.name, c_void_p) for each in (*opspec.ATTENTION.inputs, *opspec.ATTENTION.outputs))


class MoeDesc(ctypes.Structure):
    """``q2export_moe_desc``."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("hidden_size", c_int32),
        ("intermediate_size", c_int32),
        ("num_experts", c_int32),
        ("top_k", c_int32),
        ("norm_topk_prob", c_int32),
        ("dtype", c_int32),
    )


_DESCRIPTIONS: Mapping[str, type[ctypes.Structure]] = {
    opspec.ROTARY.name: RotaryDesc,
    opspec.ATTENTION.name: AttentionDesc,
    opspec.ROTARY_ATTENTION.name: AttentionDesc,
    opspec.MOE.name: MoeDesc,
}

_SYMBOLS = {
    "batch": "B",
    "sequence": "S",
    "capacity": "C",
    "num_heads": "Hq",  # an attribute as well, but not of Q2RotaryEmbedding
    "head_dim": "D",
    "num_tokens": "T",
    "hidden_size": "H",
    "intermediate_size": "I",
}
"""Fields of the structures that are sizes of the inputs."""


@dataclass(frozen=True)
class Call:
    """One op on tensors of known sizes.

    Attributes:
        spec: the op.
        sizes: value of every symbol of its shapes.
        attributes: of the node, checked.
        dtype: of its ``T`` tensors, a float type.
        node: name of the node, for messages.
    """

    spec: opspec.OpSpec
    sizes: Mapping[str, int]
    attributes: Attributes
    dtype: str
    node: str


def describe(call: Call) -> ctypes.Structure:
    """Return the description of a call, as the C function wants it."""
    kind = _DESCRIPTIONS[call.spec.name]
    values: dict[str, int | float | None] = {
        name: call.sizes[s] for name, s in _SYMBOLS.items() if s in call.sizes
    }
    values |= {"dtype": BY_NAME[call.dtype].kernel_code, **call.attributes}
    return kind(*(values[field[0]] for field in kind._fields_))


def workspace_bytes(call: Call) -> int:
    """Return the workspace the kernels want for these sizes; touches no device.

    Raises:
        MissingDependencyError: the library is not built. GenerationError: it refuses the description.
    """
    library = load(LIBRARY)
    wanted = c_size_t(0)
    function = getattr(library, f"q2export_{call.spec.torch_name}_workspace_size")
    _check(library, call, function(ctypes.byref(describe(call)), ctypes.byref(wanted)))
    return wanted.value


def launch(call: Call, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int) -> None:
    """Queue an op.

    Args:
        call: what to do.
        inputs: device addresses, in the order of the specification; repeated inputs follow the fixed ones.
        outputs: device addresses.
        workspace: device address of at least :func:`workspace_bytes`.
        stream: a ``cudaStream_t``.

    Raises:
        MissingDependencyError: the library is not built. GenerationError: it refuses the call.
    """
    library = load(LIBRARY)
    arguments = _arguments(call, inputs, outputs)
    needed, reserved = workspace_bytes(call), reserved_bytes(call.spec, call.sizes, call.attributes)
    if needed > reserved:
        raise GenerationError(
            f"node {call.node!r} ({call.spec.name}): the kernels want {needed} bytes of workspace, engines "
            f"reserve {reserved}; use the kernels of the q2export that built the engine"
        )
    tail = (c_void_p(workspace), c_size_t(needed), c_void_p(stream))
    function = getattr(library, f"q2export_{call.spec.torch_name}")
    _check(library, call, function(ctypes.byref(describe(call)), *arguments, *tail))


def _arguments(call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> list[object]:
    """The arguments between the description and the workspace, which differ per op."""
    pointers = [c_void_p(address) for address in (*inputs, *outputs)]
    if call.spec.name == opspec.ROTARY.name:
        return list(pointers)
    if call.spec.name == opspec.MOE.name:
        hidden, router_logits, *weights, output = pointers
        of_expert = len(call.spec.repeated)
        by_kind = [(c_void_p * (len(weights) // of_expert))(*weights[i::of_expert]) for i in range(of_expert)]
        return [hidden, router_logits, *by_kind, output]
    shared = len(opspec.ATTENTION.inputs)
    tensors = AttentionTensors(*inputs[:shared], *outputs)
    if call.spec.name == opspec.ATTENTION.name:
        return [ctypes.byref(tensors)]
    return [ctypes.byref(tensors), pointers[shared], c_float(call.attributes["attention_factor"])]


def _check(library: ctypes.CDLL, call: Call, status: int) -> None:
    if status != 0:
        name = library.q2export_status_string(status).decode()
        raise GenerationError(
            f"node {call.node!r} ({call.spec.name}): the CUDA kernel refuses the call: {name}: "
            f"{library.q2export_last_error().decode()}"
        )


@cache
def load(path: Path) -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        MissingDependencyError: they are not built, cannot be loaded here, or are of another version.
    """
    rebuild = "in the source tree: python -m q2export.plugins.kernel_build"
    if not path.is_file():
        raise MissingDependencyError(
            f"the CUDA kernels are needed to run this engine, but {path} is absent "
            f"({kernel_build.recorded()}); {rebuild}"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingDependencyError(f"the CUDA kernels cannot be loaded: {error}; {rebuild}") from error
    library.q2export_status_string.restype = ctypes.c_char_p
    library.q2export_last_error.restype = ctypes.c_char_p
    found = library.q2export_kernels_abi_version()
    if found != ABI_VERSION:
        raise MissingDependencyError(
            f"{path} has version {found} of the kernel interface, expected {ABI_VERSION}; {rebuild}"
        )
    return library
