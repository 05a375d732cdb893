"""Running a float16 or bfloat16 graph where the kernels for it are missing, or round less than it says.

ONNX Runtime's CPU provider has no arithmetic in bfloat16, and NumPy, which onnx.reference leaves products
to, has none either. In float16 it inserts casts to float32 around what it has no kernel for, and then drops
those between two such nodes: there, (1 + 2^-12) - 1 is 2^-12. So every node is run in float32 between casts
of our own: its inputs are widened, which is exact, and each output is rounded at once. That is what a kernel
does that accumulates in float32 and stores 16 bits; no rounding of the graph is left out, moved or added.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, inliner, shape_inference

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rounded_at_every_node(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation with functions inlined, every node in float32, every output rounded to its type.

    Inputs and outputs of the graph in 16 bits become float32 that holds such values.
    """
    inlined = inliner.inline_local_functions(model)
    result = shape_inference.infer_shapes(inlined, check_type=True, strict_mode=True)
    graph = result.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    } | {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}
    for value in graph.input:
        if types[value.name] in NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            wide[value.name] = value.name
    for node in graph.node:
        for index, name in enumerate(node.input):
            if types.get(name) in NARROW:
                if name not in wide:
                    wide[name] = f"{name}/wide"
                    nodes.append(helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT))
                node.input[index] = wide[name]
        nodes += _rounded(node, types)
    for value in graph.output:
        if types[value.name] in NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            _rename(nodes, value.name, f"{value.name}/narrow")
            narrow = f"{value.name}/narrow"
            nodes.append(helper.make_node("Cast", [narrow], [value.name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result


def _rounded(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """``node`` with its 16-bit outputs computed in float32, and the casts that round them."""
    casts = []
    for index, name in enumerate(node.output):
        if types[name] in NARROW:
            node.output[index] = f"{name}/unrounded"
            casts.append(helper.make_node("Cast", [node.output[index]], [name], to=types[name]))
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
            attribute.i = TensorProto.FLOAT
    return [node, *casts]


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
