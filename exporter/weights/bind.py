"""Binding initializers to data: in place in the checkpoint where the types agree, written anew where not.

Nothing is written before everything is known to fit: :func:`plan_binding` decides from headers alone. Then
``place.py`` brings in the files that are used in place, ``convert.py`` streams what must change into one
safetensors file, and ``attach.py`` points the graph at both.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx_ir as ir

from q2export.contracts.dtypes import BY_NAME, FLOAT_NAMES
from q2export.errors import ExportError
from q2export.exporter.checkpoint.folder import Checkpoint, TensorRef
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES
from q2export.exporter.weights.stack import META_KEY, Form, Stack

_FLOATS = {ir.DataType[BY_NAME[name].onnx]: BY_NAME[name].safetensors for name in FLOAT_NAMES}


@dataclass(frozen=True)
class Binding:
    """Where the data of one initializer come from.

    Attributes:
        name: of the initializer.
        sources: the tensors on disk, in order.
        shape: of the initializer.
        dtype: F32, F16 or BF16 where values are wanted; U8 where bytes are, whatever their type in the graph.
        nbytes: of the initializer.
        form: what is done to the tensors.
        sign_bits: of ``SIGNED_CODES``, those of a byte that are flipped.
    """

    name: str
    sources: tuple[TensorRef, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    form: Form = Form.VALUES
    sign_bits: int = 0

    @property
    def source(self) -> TensorRef:
        """The first tensor; in place, where the data begin."""
        return self.sources[0]

    @property
    def in_place(self) -> bool:
        """Whether the graph takes the tensors as they lie on disk."""
        if self.form not in (Form.VALUES, Form.BYTES):
            return False
        same_type = self.form is Form.BYTES or all(ref.dtype == self.dtype for ref in self.sources)
        return same_type and _is_one_run(self.sources)


def _is_one_run(refs: tuple[TensorRef, ...]) -> bool:
    """Whether the tensors follow each other in one file."""
    return all(
        one.file == other.file and one.offset + one.nbytes == other.offset for one, other in pairwise(refs)
    )


@dataclass(frozen=True)
class BindingPlan:
    """The bindings of a graph, in graph order."""

    checkpoint: Checkpoint
    bindings: tuple[Binding, ...]

    @property
    def in_place(self) -> tuple[Binding, ...]:
        """Those read from the checkpoint's own files."""
        return tuple(binding for binding in self.bindings if binding.in_place)

    @property
    def converted(self) -> tuple[Binding, ...]:
        """Those that have to be converted."""
        return tuple(binding for binding in self.bindings if not binding.in_place)

    @property
    def shards(self) -> tuple[Path, ...]:
        """Checkpoint files read in place, in the checkpoint's order."""
        used = {binding.source.file for binding in self.in_place}
        return tuple(file for file in self.checkpoint.files if file in used)

    @property
    def in_place_bytes(self) -> int:
        """Bytes of the files read in place; those that several initializers see are counted once."""
        return sum(ref.nbytes for ref in self._sources_in_place())

    @property
    def in_place_tensors(self) -> int:
        """How many tensors of the checkpoint are read in place."""
        return len(self._sources_in_place())

    def _sources_in_place(self) -> set[TensorRef]:
        return {ref for binding in self.in_place for ref in binding.sources}

    @property
    def converted_bytes(self) -> int:
        """Bytes of weights after conversion."""
        return sum(binding.nbytes for binding in self.converted)


def plan_binding(model: ir.Model, checkpoint: Checkpoint, parameters: Collection[str]) -> BindingPlan:
    """Find the tensor of every initializer that has no data yet.

    Args:
        model: the lowered graph.
        checkpoint: where the tensors are.
        parameters: names of all parameters of the model; the graph must read every one of them.

    Raises:
        ExportError: an initializer has no tensor of its name and shape, or a parameter has no initializer.
            Both would be a fault of the exporter: ``check_parameters`` has already compared the checkpoint
            with the model.
    """
    bindings = []
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        bindings.append(_bind(name, value, checkpoint))
    unread = sorted(set(parameters) - {ref.name for binding in bindings for ref in binding.sources})
    if unread:
        raise ExportError(
            f"the graph does not read {len(unread)} parameter(s) of the model, first {unread[0]!r}"
        )
    return BindingPlan(checkpoint, tuple(bindings))


def _bind(name: str, value: ir.Value, checkpoint: Checkpoint) -> Binding:
    stack = value.meta.get(META_KEY, Stack((name,)))
    sources = tuple(checkpoint.tensors[tensor] for tensor in stack.tensors if tensor in checkpoint.tensors)
    shape = tuple(int(size) for size in value.shape.numpy()) if value.shape is not None else ()
    dtype = value.dtype or ir.DataType.UNDEFINED
    complete = len(sources) == len(stack.tensors)
    if not complete or not _fills(sources, stack.form, dtype, shape):
        found = ", ".join(f"{ref.dtype} {ref.shape}" for ref in sources[:2]) or "no such tensor"
        raise ExportError(f"initializer {name!r} ({dtype} {shape}) has no tensor to read: found {found}")
    floating = _FLOATS.get(dtype) if stack.form is Form.VALUES else None
    sign_bits = 0
    if stack.form is Form.SIGNED_CODES:
        sign_bits = 0x88 if dtype.bitwidth == 4 else 0x80
    nbytes = _nbytes(dtype, shape)
    return Binding(name, sources, shape, floating or "U8", nbytes, stack.form, sign_bits)


def _nbytes(dtype: ir.DataType, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.bitwidth // 8)


def _fills(sources: tuple[TensorRef, ...], form: Form, dtype: ir.DataType, shape: tuple[int, ...]) -> bool:
    """Whether the tensors are what an initializer of this type and shape is made of."""
    if form is not Form.VALUES:
        expected = _nbytes(dtype, shape)
        if form is Form.UNPADDED_NIBBLES:
            expected = math.prod(shape[:-1]) * _nbytes(dtype, shape[-1:]) if len(sources) == 1 else -1
        integers = all(ref.dtype not in FLOAT_DTYPES for ref in sources)
        return integers and sum(ref.nbytes for ref in sources) == expected
    if dtype not in _FLOATS or not all(ref.dtype in FLOAT_DTYPES for ref in sources):
        return False
    if len(sources) == 1:
        return sources[0].shape == shape
    same_rows = len({ref.shape[1:] for ref in sources}) == 1
    return same_rows and sum(math.prod(ref.shape) for ref in sources) == math.prod(shape)
