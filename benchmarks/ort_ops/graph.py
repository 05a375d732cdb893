"""A small ONNX graph builder whose weights are external data in one file, as in an engine package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Float32Array = npt.NDArray[np.float32]
Attributes = Mapping[str, int | float | str | Sequence[int]]

CONTRIB = "com.microsoft"
_ALIGNMENT = 4096
_OPSET = 24
_IR_VERSION = 10


class WeightFile:
    """Arrays appended to one file, page aligned, to be mapped by ONNX Runtime as external data."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        self.path = path
        self._tensors: dict[str, TensorProto] = {}

    def add(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Append ``array`` under ``name``; the graphs refer to it by that name."""
        offset = -(-self.path.stat().st_size // _ALIGNMENT) * _ALIGNMENT
        with self.path.open("r+b") as file:
            file.seek(offset)
            np.ascontiguousarray(array).tofile(file)
        element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=element_type, data_location=TensorProto.EXTERNAL)
        tensor.dims.extend(array.shape)
        for key, value in (
            ("location", self.path.name),
            ("offset", str(offset)),
            ("length", str(array.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
        self._tensors[name] = tensor

    def __contains__(self, name: str) -> bool:
        """Whether an array of that name was added."""
        return name in self._tensors

    def tensor(self, name: str) -> TensorProto:
        """The external-data initializer called ``name``."""
        return self._tensors[name]


class GraphBuilder:
    """Collects nodes in order; node outputs are numbered, so every variant stays a short list of calls."""

    def __init__(self, weights: WeightFile | None = None) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, element_type: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, value: str, name: str) -> None:
        """Declare a float32 graph output called ``name`` that is ``value``."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def direct_output(self, name: str) -> None:
        """Declare a node's own output as float32 graph output, so that it can be bound in place."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def weight(self, name: str) -> str:
        """Use a tensor of the weight file."""
        if self._weights is None:
            raise ValueError(f"the graph has no weight file to take {name!r} from")
        self._initializers.setdefault(name, self._weights.tensor(name))
        return name

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        """A small initializer inside the file, shared by equal value."""
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{hash(array.tobytes()) & 0xFFFFFFFF:x}"
        self._initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def ints(self, values: Sequence[int]) -> str:
        """A 1-D int64 constant, as shape and axes operands are."""
        return self.constant(np.array(values, dtype=np.int64))

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        attributes: Attributes | None = None,
        domain: str = "",
        outputs: int | Sequence[str] = 1,
    ) -> list[str]:
        """Append a node and return the names of its outputs."""
        prefix = f"v{len(self._nodes)}_{op_type}"
        names = [f"{prefix}_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = helper.make_node(op_type, inputs, names, name=prefix, domain=domain)
        for key, value in (attributes or {}).items():
            node.attribute.append(helper.make_attribute(key, value))
        self._nodes.append(node)
        return names

    def op(
        self, op_type: str, inputs: Sequence[str], attributes: Attributes | None = None, domain: str = ""
    ) -> str:
        """Append a node of one output and return its name."""
        return self.add(op_type, inputs, attributes, domain)[0]

    def save(self, path: Path) -> Path:
        """Write the model beside its weight file."""
        graph = helper.make_graph(
            self._nodes, path.stem, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), path)
        return path
