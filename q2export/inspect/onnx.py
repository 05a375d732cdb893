"""What an ONNX file holds: ops, functions, inputs and outputs, and where its weights are. Reads no weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.dtypes import BY_ONNX
from q2export.errors import Q2ExportError

if TYPE_CHECKING:
    import onnx


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


def summarise_onnx(path: Path) -> OnnxSummary:
    """Read the graph of an ONNX file; external data need not even exist.

    Raises:
        Q2ExportError: the file cannot be read or is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise Q2ExportError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise Q2ExportError(f"{path}: expected an ONNX model, found something else ({error})") from error
    graph = model.graph
    if not graph.node and not graph.output:
        raise Q2ExportError(f"{path}: expected an ONNX model, found no graph in it")
    weights = {tensor.name for tensor in graph.initializer}
    counts = Counter((node.domain, node.op_type) for node in graph.node)
    return OnnxSummary(
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        opsets=tuple((opset.domain or "ai.onnx", opset.version) for opset in model.opset_import),
        ops=tuple(OpCount(*op, count) for op, count in counts.most_common()),
        functions=tuple(FunctionInfo(f.domain, f.name, len(f.node)) for f in model.functions),
        inputs=tuple(_tensor(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_tensor(value) for value in graph.output),
        weights=_weights(graph.initializer),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    )
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
    return TensorInfo(value.name, BY_ONNX[dtype].name if dtype in BY_ONNX else dtype.lower(), shape)


def _weights(initializers: Iterable[onnx.TensorProto]) -> tuple[WeightLocation, ...]:
    """Tensors and bytes per location; two tensors at the same offset of the same file are one."""
    import onnx

    tensors: Counter[str | None] = Counter()
    nbytes: Counter[str | None] = Counter()
    seen = set()
    for tensor in initializers:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        location = fields.get("location") if external else None
        tensors[location] += 1
        data = (location, fields.get("offset", "0") if external else tensor.name)
        if data not in seen:
            seen.add(data)
            nbytes[location] += _nbytes(tensor)
    return tuple(WeightLocation(name, tensors[name], nbytes[name]) for name in tensors)


def _nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor by type and shape; four-bit types take two elements per byte."""
    import onnx

    count: int = math.prod(tensor.dims)
    if onnx.TensorProto.DataType.Name(tensor.data_type) in ("INT4", "UINT4", "FLOAT4E2M1"):
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
