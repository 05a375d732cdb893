"""Whether a graph of a package may be given to a library: its size, its files, and nothing of a stranger's.

What an ONNX file can hold besides nodes makes loading it a risk: functions that call each other expand to any
number of nodes, or crash ONNX Runtime by their depth; subgraphs nest likewise; external data are read from
wherever they say. Graphs made here hold no functions but the bodies of our own ops, subgraphs only in those
and none within another, and read nothing but files of the manifest. Everything else is refused before a
library sees it. Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from q2export.contracts import opspec
from q2export.errors import PackageError
from q2export.package.manifest import MANIFEST_NAME, TOOL_NAME
from q2export.package.protobuf import VARINT, Buffer, fields, mapped, tag, varints
from q2export.strict.json import shown

MAX_NODES = 1 << 16
"""Of a graph with its functions expanded. That of Qwen2-57B-A14B in float32, the largest, has 10,719."""
MAX_ITEMS = 4 * MAX_NODES
"""Nodes, tensors, inputs, outputs and descriptions of values."""
MAX_STRUCTURE_BYTES = 64 << 20
"""Of an ONNX file without the values of its tensors. A library makes some ten times that of it."""

_NAME = tag(1)  # of AttributeProto and FunctionProto
_GRAPH, _TRAINING, _FUNCTION = tag(7), tag(20), tag(25)  # of ModelProto
_NODE, _INITIALIZER, _SPARSE = tag(1), tag(5), tag(15)  # of GraphProto
_INPUT, _OUTPUT, _VALUE_INFO = tag(11), tag(12), tag(13)
_OP_TYPE, _ATTRIBUTE = tag(4), tag(5)  # of NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS = tag(5), tag(6), tag(10), tag(11)  # of AttributeProto
_SPARSE_TENSOR, _SPARSE_TENSORS = tag(22), tag(23)
_INT, _INTS, _PACKED_INTS = tag(3, VARINT), tag(8, VARINT), tag(8)
_RAW_DATA, _EXTERNAL_DATA = tag(9), tag(13)  # of TensorProto
_BODY_NODE, _BODY_DOMAIN, _OVERLOAD = tag(7), tag(10), tag(13)  # of FunctionProto

_IN_MODEL = frozenset((_GRAPH, _TRAINING, _FUNCTION))
_IN_GRAPH = frozenset((_NODE, _INITIALIZER, _SPARSE, _INPUT, _OUTPUT, _VALUE_INFO))
_IN_ATTRIBUTE = frozenset((_NAME, _TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _INT, _INTS, _PACKED_INTS))
_IN_ATTRIBUTE |= {_SPARSE_TENSOR, _SPARSE_TENSORS}
_IN_TENSOR = frozenset((_RAW_DATA, _EXTERNAL_DATA))
_IN_FUNCTION = frozenset((_NAME, _BODY_NODE, _BODY_DOMAIN, _OVERLOAD))
_IN_NODE = frozenset((_OP_TYPE, _ATTRIBUTE))
_ENTRY = re.compile(rb"\n(?:\x08(location)|\x06(offset|length))\x12([\x00-\x7f])(.*)", re.DOTALL)
"""An external_data entry as every writer of protobuf writes it: key, then value, of at most 127 bytes."""
_OPS = frozenset(name.encode() for name in opspec.BY_NAME)
_REPEATED_BYTES = 256  # of an attribute that other nodes may have as well


def check_graph(path: Path, sizes: Mapping[str, int], rebuild_command: str) -> None:
    """Refuse a graph that no release of q2export writes.

    Args:
        path: of the ONNX file.
        sizes: bytes of each file that may hold its weights, by path relative to the folder of ``path``.
        rebuild_command: for messages.

    Raises:
        PackageError: naming what it holds that it must not.
    """
    with mapped(path, PackageError) as data:
        try:
            _Check(data, sizes).model()
        except ValueError as problem:
            raise PackageError(f"{path}: {problem}; rebuild with: {rebuild_command}") from None


class _Check:
    """One pass over a file; every problem is a ValueError that goes on after the file's name."""

    def __init__(self, data: Buffer, sizes: Mapping[str, int]) -> None:
        self._data = data
        self._sizes = sizes
        self._items = 0
        self._value_bytes = 0
        self._harmless: set[bytes] = set()  # attributes seen: a few, in thousands of nodes
        self._bodies: dict[bytes, Counter[bytes]] = {}  # function -> op types of its nodes

    def model(self) -> None:
        """Check the whole file."""
        nodes: Counter[bytes] = Counter()
        for key, first, last in fields(self._data, 0, len(self._data), _IN_MODEL):
            if key == _FUNCTION:
                self._function(first, last)
            elif key == _GRAPH:  # of several, protobuf makes one
                self._graph(first, last, nodes)
            else:
                raise ValueError("holds training information")
        if not nodes:
            raise ValueError("is no ONNX model: it holds no graph")
        structure = len(self._data) - self._value_bytes
        if structure > MAX_STRUCTURE_BYTES:
            raise ValueError(f"takes {structure} bytes beside its weights, more than {MAX_STRUCTURE_BYTES}")
        count = self._expanded(nodes, frozenset())
        if count > MAX_NODES:
            raise ValueError(f"has {count} nodes, its functions expanded, more than {MAX_NODES}")

    def _graph(self, start: int, end: int, nodes: Counter[bytes]) -> None:
        for key, first, last in fields(self._data, start, end, _IN_GRAPH):
            if key == _NODE:
                self._node(first, last, nodes)
            elif key == _INITIALIZER:
                self._tensor(first, last)
            elif key == _SPARSE:
                raise ValueError("holds a sparse tensor")
            self._items += 1
            if self._items > MAX_ITEMS:
                raise ValueError(f"holds more than {MAX_ITEMS} nodes and tensors")

    def _function(self, start: int, end: int) -> None:
        name, domain, body = b"", b"", Counter[bytes]()
        for key, first, last in fields(self._data, start, end, _IN_FUNCTION):
            if key == _NAME:
                name = self._data[first:last]
            elif key == _BODY_DOMAIN:
                domain = self._data[first:last]
            elif key == _BODY_NODE:
                self._body_node(first, last, body)
            elif last > first:
                raise ValueError("holds an overloaded function")
        full = f"{domain.decode(errors='replace')}.{name.decode(errors='replace')}"
        if domain != opspec.DOMAIN.encode() or name not in _OPS or name in self._bodies:
            raise ValueError(f"holds the function {shown(full)}, which is not {TOOL_NAME}'s")
        self._bodies[name] = body

    def _expanded(self, nodes: Counter[bytes], within: frozenset[bytes]) -> int:
        """How many nodes these become; no deeper than there are ops of ours."""
        count = nodes.total()
        for name in self._bodies.keys() & nodes.keys():
            if name in within:
                raise ValueError(f"holds the function {name.decode()}, which calls itself")
            count += nodes[name] * self._expanded(self._bodies[name], within | {name})
        return count

    def _node(self, start: int, end: int, nodes: Counter[bytes]) -> None:
        for key, first, last in fields(self._data, start, end, _IN_NODE):
            if key == _OP_TYPE:
                nodes[self._data[first:last]] += 1
                continue
            if last - first > _REPEATED_BYTES:
                self._attribute(first, last)
            elif (attribute := self._data[first:last]) not in self._harmless:
                self._attribute(first, last)
                self._harmless.add(attribute)

    def _body_node(self, start: int, end: int, body: Counter[bytes]) -> None:
        """A node of a function, which may hold a subgraph: the loop of an op over its experts."""
        for key, first, last in fields(self._data, start, end, _IN_NODE):
            if key == _OP_TYPE:
                body[self._data[first:last]] += 1
            else:
                self._attribute(first, last, body)

    def _attribute(self, start: int, end: int, body: Counter[bytes] | None = None) -> None:
        """Of a node; ``body`` counts the nodes of a subgraph, where it may have one."""
        name, numbers, has_subgraph = b"", list[int](), False
        for key, first, last in fields(self._data, start, end, _IN_ATTRIBUTE):
            if key == _NAME:
                name = self._data[first:last]
            elif key in (_TENSOR, _TENSORS):
                self._tensor(first, last)
            elif key == _PACKED_INTS:
                numbers += varints(self._data, first, last)
            elif key in (_INT, _INTS):
                numbers.append(first)
            elif key == _SUBGRAPH and body is not None:
                self._graph(first, last, body)
                has_subgraph = True
            else:
                raise ValueError("holds a node with a subgraph or a sparse tensor")
        if has_subgraph and name != b"body":
            raise ValueError("holds a node with a subgraph that is no loop's")
        # Kernels put attributes into 32 bits, and divide by what is left of them; Constant makes tensors.
        for number in numbers if name not in (b"value_int", b"value_ints") else ():
            if 1 << 31 <= number < (1 << 64) - (1 << 31):
                raise ValueError(f"holds a node with the attribute {number}, which has more than 32 bits")

    def _tensor(self, start: int, end: int) -> None:
        place: dict[bytes, bytes] = {}
        for key, first, last in fields(self._data, start, end, _IN_TENSOR):
            if key == _RAW_DATA:
                self._value_bytes += last - first
                continue
            entry = _ENTRY.fullmatch(self._data[first:last])
            if entry is None or ord(entry[3]) != len(entry[4]):
                raise ValueError(f"says where a weight is in a way that {TOOL_NAME} does not write")
            name = entry[1] or entry[2]
            if name in place:
                raise ValueError(f"says twice where a weight is: {name.decode()}")
            place[name] = entry[4]
        if place:
            self._weight(place)

    def _weight(self, place: Mapping[bytes, bytes]) -> None:
        location = place.get(b"location", b"").decode(errors="replace")
        size = self._sizes.get(location)
        if size is None:
            raise ValueError(f"reads weights from {shown(location)}, which {MANIFEST_NAME} does not list")
        offset, length = place.get(b"offset", b""), place.get(b"length", b"")
        if not (offset.isdigit() and length.isdigit()) or int(offset) + int(length) > size:
            raise ValueError(
                f"reads weights at {shown(offset.decode(errors='replace'))}, of length "
                f"{shown(length.decode(errors='replace'))}, from {shown(location)} of {size} bytes"
            )
