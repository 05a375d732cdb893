"""What an ONNX file holds: ops, functions, inputs and outputs, and where its weights are. Reads no weight.

The file may be anyone's: it is walked (:mod:`q2export.package.protobuf`), in time and memory that grow with
its nodes and tensors, and not given to a library. Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from q2export.errors import Q2ExportError
from q2export.package.protobuf import VARINT, Buffer, fields, mapped, tag, varints


@dataclass(frozen=True)
class OpCount:
    """Nodes of one op type in the main graph; ``domain`` is empty for standard ops."""

    domain: str
    op_type: str
    count: int


@dataclass(frozen=True)
class FunctionInfo:
    """A function the file defines: the body of a custom op, as ``nodes`` nodes."""

    domain: str
    name: str
    nodes: int


@dataclass(frozen=True)
class TensorInfo:
    """An input or output; a dimension is a number, or the name of a dynamic one (``?`` if it has none)."""

    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class WeightLocation:
    """Initializers in one external file, relative to the ONNX file, or inside it (None)."""

    location: str | None
    tensors: int
    bytes: int


@dataclass(frozen=True)
class OnnxSummary:
    """One ONNX file.

    Attributes:
        file_bytes: size of the file itself, without external weights.
        opsets: version by domain. ops: most frequent first.
        weights: by location. Bytes of tensors that share data are counted once.
    """

    file_bytes: int
    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    ops: tuple[OpCount, ...]
    functions: tuple[FunctionInfo, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    weights: tuple[WeightLocation, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.bytes for weight in self.weights)


_MAX_ITEMS, _MAX_RANK = 1 << 18, 64
_FOUR_BITS = ("int4", "uint4", "float4e2m1")
_TYPES = (
    *(
        "undefined",
        "float32",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
    ),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz"),
    *("float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2", "int2"),
)
"""Of ``TensorProto.DataType``, in its order."""


def summarise_onnx(path: Path) -> OnnxSummary:
    """Read the graph of an ONNX file; external data need not even exist.

    Raises:
        Q2ExportError: the file cannot be read or is no ONNX model.
    """
    with mapped(path, Q2ExportError) as data:
        try:
            return _summary(data)
        except ValueError as error:
            raise Q2ExportError(f"{path}: expected an ONNX model, found something else: it {error}") from None


class _Message:
    """The fields ``numbers`` of one message, which may lie in several places: protobuf joins them."""

    def __init__(self, data: Buffer, places: Sequence[tuple[int, int]], *numbers: int) -> None:
        self._data = data
        wanted = frozenset(key for number in numbers for key in (tag(number), tag(number, VARINT)))
        self._fields: dict[int, list[tuple[int, int]]] = {}
        self._integers: dict[int, list[int]] = {}
        found = (field for place in places for field in fields(data, *place, wanted))
        for count, (key, first, last) in enumerate(found):
            if count == _MAX_ITEMS:
                raise ValueError(f"holds more than {_MAX_ITEMS} nodes and tensors")
            if key & 7 == VARINT:
                self._integers.setdefault(key >> 3, []).append(first)
            else:
                self._fields.setdefault(key >> 3, []).append((first, last))

    def all(self, number: int, *numbers: int) -> Iterator[_Message]:
        """The messages of a repeated field, each with the fields ``numbers``."""
        return (_Message(self._data, [each], *numbers) for each in self._fields.get(number, ()))

    def one(self, number: int, *numbers: int) -> _Message:
        """The message of a field that is not repeated; an empty one where there is none."""
        return _Message(self._data, self._fields.get(number, ()), *numbers)

    def text(self, number: int) -> str:
        """A string fit for a terminal; empty where there is none."""
        first, last = self._fields.get(number, [(0, 0)])[-1]
        text = self._data[first:last].decode("utf-8", "replace")
        return text if text.isprintable() else text.encode("unicode_escape").decode()

    def has(self, number: int) -> bool:
        """Whether there is an integer."""
        return number in self._integers

    def integers(self, number: int) -> list[int]:
        """Integers, packed or not."""
        packed = (varints(self._data, *each) for each in self._fields.get(number, ()))
        return [*self._integers.get(number, ()), *(value for values in packed for value in values)]

    def integer(self, number: int) -> int:
        """An integer; 0 where there is none."""
        return self._integers.get(number, [0])[-1]


def _summary(data: Buffer) -> OnnxSummary:
    model = _Message(data, [(0, len(data))], 1, 7, 8, 25)
    graph = model.one(7, 1, 5, 11, 12)
    counts = Counter((node.text(7), node.text(4)) for node in graph.all(1, 4, 7))
    outputs = tuple(map(_tensor, graph.all(12, 1, 2)))
    if not counts and not outputs:
        raise ValueError("holds no graph")
    initializers = list(graph.all(5, 1, 2, 8, 13, 14))
    names = {each.text(8) for each in initializers}
    inputs = map(_tensor, graph.all(11, 1, 2))
    return OnnxSummary(
        file_bytes=len(data),
        ir_version=model.integer(1),
        opsets=tuple((opset.text(1) or "ai.onnx", opset.integer(2)) for opset in model.all(8, 1, 2)),
        ops=tuple(OpCount(*op, count) for op, count in counts.most_common()),
        functions=tuple(
            FunctionInfo(each.text(10), each.text(1), sum(1 for _ in each.all(7)))
            for each in model.all(25, 1, 7, 10)
        ),
        inputs=tuple(each for each in inputs if each.name not in names),
        outputs=outputs,
        weights=_weights(initializers),
    )


def _tensor(value: _Message) -> TensorInfo:
    """An input or output: ``ValueInfoProto``, its ``TypeProto``, ``TypeProto.Tensor`` and the shape."""
    tensor = value.one(2, 1).one(1, 1, 2)
    shape = tuple(
        str(_signed(dim.integer(1))) if dim.has(1) else dim.text(2) or "?"
        for dim in tensor.one(2, 1).all(1, 1, 2)
    )
    return TensorInfo(value.text(1), _type_name(tensor.integer(1)), shape)


def _type_name(number: int) -> str:
    return _TYPES[number] if number < len(_TYPES) else f"type {number}"


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _weights(initializers: Iterable[_Message]) -> tuple[WeightLocation, ...]:
    """Tensors and bytes per location; two tensors at the same offset of the same file are one."""
    tensors: Counter[str | None] = Counter()
    nbytes: Counter[str | None] = Counter()
    seen = set()
    for tensor in initializers:
        place = {entry.text(1): entry.text(2) for entry in tensor.all(13, 1, 2)}
        external = tensor.integer(14) == 1
        location = place.get("location") if external else None
        tensors[location] += 1
        data = (location, place.get("offset", "0") if external else tensor.text(8))
        if data not in seen:
            seen.add(data)
            nbytes[location] += _nbytes(tensor)
    return tuple(WeightLocation(name, tensors[name], nbytes[name]) for name in tensors)


def _nbytes(tensor: _Message) -> int:
    """Bytes of a tensor by type and shape; strings count nothing."""
    dims = tensor.integers(1)
    if len(dims) > _MAX_RANK:
        raise ValueError(f"holds a tensor of {len(dims)} dimensions")
    count: int = math.prod(map(_signed, dims))
    name = _type_name(tensor.integer(2))
    if name in _FOUR_BITS:
        return (count + 1) // 2
    if name in ("uint2", "int2"):
        return (count + 3) // 4
    bits = re.search(r"\d+", name)
    return count * (int(bits[0]) // 8 if bits and name in _TYPES else int(name == "bool"))
