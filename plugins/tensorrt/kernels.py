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

ABI_VERSION = 2
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


class QuantizedMoeDesc(ctypes.Structure):
    """``q2export_quantized_moe_desc``: a ``q2export_moe_desc``, and how its weights are packed."""

    _fields_ = (*MoeDesc._fields_, ("bits", c_int32), ("block_size", c_int32))


_DESCRIPTIONS: Mapping[str, type[ctypes.Structure]] = {
    opspec.ROTARY.name: RotaryDesc,
    opspec.ATTENTION.name: AttentionDesc,
    opspec.ROTARY_ATTENTION.name: AttentionDesc,
    opspec.MOE.name: MoeDesc,
    opspec.QUANTIZED_MOE.name: QuantizedMoeDesc,
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
    """Queue an op once; :class:`PreparedCall` has the arguments, :func:`prepare` the errors."""
    prepare(call).launch(inputs, outputs, workspace, stream)


def prepare(call: Call) -> PreparedCall:
    """Return an op on tensors of known sizes, ready to be queued any number of times.

    Raises:
        MissingDependencyError: the library is not built. GenerationError: it refuses the description, or
            wants more workspace than engines reserve.
    """
    needed, reserved = workspace_bytes(call), reserved_bytes(call.spec, call.sizes, call.attributes)
    if needed > reserved:
        raise GenerationError(
            f"node {call.node!r} ({call.spec.name}): the kernels want {needed} bytes of workspace, engines "
            f"reserve {reserved}; use the kernels of the q2export that built the engine"
        )
    return PreparedCall(call, load(LIBRARY), needed)


class PreparedCall:
    """What of a call does not change while its sizes do not.

    Args:
        call: what to do.
        library: the kernels.
        workspace_bytes: that they want.
    """

    def __init__(self, call: Call, library: ctypes.CDLL, workspace_bytes: int) -> None:
        self._call, self._library = call, library
        self._function = getattr(library, f"q2export_{call.spec.torch_name}")
        self._description = describe(call)
        self._reference = ctypes.byref(self._description)
        self._workspace_bytes = c_size_t(workspace_bytes)
        self._weights: Sequence[int] = ()
        self._experts: list[object] = []

    def launch(self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int) -> None:
        """Queue the op.

        Args:
            inputs: device addresses, in the order of the specification; repeated ones follow the others.
            outputs: device addresses.
            workspace: device address of at least :func:`workspace_bytes`.
            stream: a ``cudaStream_t``.

        Raises:
            GenerationError: the kernels refuse the call.
        """
        arguments = self._arguments(inputs, outputs)
        tail = (c_void_p(workspace), self._workspace_bytes, c_void_p(stream))
        _check(self._library, self._call, self._function(self._reference, *arguments, *tail))

    def _arguments(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[object]:
        """The arguments between the description and the workspace, which differ per op."""
        spec = self._call.spec
        if spec.name == opspec.MOE.name:
            fixed = len(spec.inputs)
            return [*map(c_void_p, inputs[:fixed]), *self._by_kind(inputs[fixed:]), c_void_p(outputs[0])]
        if spec.name in (opspec.ROTARY.name, opspec.QUANTIZED_MOE.name):
            return [c_void_p(address) for address in (*inputs, *outputs)]
        shared = len(opspec.ATTENTION.inputs)
        tensors = ctypes.byref(AttentionTensors(*inputs[:shared], *outputs))
        if spec.name == opspec.ATTENTION.name:
            return [tensors]
        return [tensors, c_void_p(inputs[shared]), c_float(self._call.attributes["attention_factor"])]

    def _by_kind(self, weights: Sequence[int]) -> list[object]:
        """Arrays of gates, ups and downs, made again where an address has changed: streamed weights move."""
        if self._weights != weights:
            of_expert = len(self._call.spec.repeated)
            array = c_void_p * (len(weights) // of_expert)
            self._experts = [array(*weights[i::of_expert]) for i in range(of_expert)]
            self._weights = list(weights)
        return self._experts


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
