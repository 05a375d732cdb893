"""Sessions of one node over the library of custom ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from q2export.contracts.opspec import DOMAIN
from tests.plugins.cpu.kernels import BFLOAT16, FLOAT16, FLOAT32

ELEMENT_TYPES = {FLOAT32: TensorProto.FLOAT, FLOAT16: TensorProto.FLOAT16, BFLOAT16: TensorProto.BFLOAT16}

Array = NDArray[np.generic]


def initializer(name: str, array: Array, element_type: int) -> TensorProto:
    """A tensor of the bytes of an array."""
    return TensorProto(name=name, data_type=element_type, dims=array.shape, raw_data=array.tobytes())


@dataclass(frozen=True)
class Node:
    """One node, its inputs either initializers or inputs of the graph.

    Attributes:
        op: its type.
        inputs: names in order; empty where an optional one is left out.
        initializers: those that are constant.
        graph_inputs: element type by name of the others.
        outputs: element type by name.
        attributes: of the node.
        functions: bodies that the file carries.
    """

    op: str
    inputs: Sequence[str]
    initializers: Sequence[TensorProto]
    graph_inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    functions: Sequence[onnx.FunctionProto] = ()

    def model(self) -> bytes:
        """The file."""
        node = helper.make_node(
            self.op, list(self.inputs), list(self.outputs), domain=DOMAIN, name="node", **self.attributes
        )
        inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in self.graph_inputs.items()]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in self.outputs.items()]
        graph = helper.make_graph([node], "one_node", inputs, outputs, list(self.initializers))
        versions = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
        made = helper.make_model(graph, opset_imports=versions, functions=list(self.functions), ir_version=10)
        serialized: bytes = made.SerializeToString()
        return serialized

    def session(self, library: Path | None, threads: int = 2) -> Any:
        """A session of it, with the custom ops unless ``library`` is None."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if library is not None:
            options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(self.model(), options, providers=["CPUExecutionProvider"])
