"""``Gemm`` -> ``Q2Linear``, and rows of an embedding widened after they are gathered: weights as on disk.

ONNX Runtime's kernels on the CPU want float32 weights. A checkpoint of 16 bits would be written anew for
them, twice as large, and be read at twice the cost for every token.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import Inserter, Pass, PassResult, input_of, nodes_of, replace
from q2export.exporter.weights.stack import META_KEY


class LowerLinear(Pass):
    """Attributes:
    dtypes: of the weights on disk, by Hugging Face name; those that are not here are left alone.
    """

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.dtypes = dtypes

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every Gemm and Gather whose weight nothing else reads but others of these."""
        graph, narrowed = model.graph, set[str]()
        for value in list(graph.initializers.values()):
            if self._is_weight(value):
                others = [use.node for use in value.uses() if not _reads_in_place(use.node, use.idx)]
                if others:
                    result.refused.append(f"{value.name}: {others[0].op_type} reads it as float32")
                else:
                    narrowed.add(value.name or "")
        for gemm in nodes_of(graph, "Gemm"):
            if input_of(gemm, 1).name in narrowed:
                attributes = {"bfloat16_activations": 0}
                new = Inserter(graph, gemm).op(
                    opspec.LINEAR.name, gemm.inputs, domain=opspec.DOMAIN, attributes=attributes
                )
                replace(graph, gemm, [new])
                result.matched += 1
        for gather in nodes_of(graph, "Gather"):
            if input_of(gather, 0).name in narrowed:
                _widen_rows(graph, gather, self._type(input_of(gather, 0)))
                result.matched += 1
        for name in narrowed:
            weight = graph.initializers[name]
            weight.type = ir.TensorType(self._type(weight))
        if nodes_of(graph, opspec.LINEAR.name, opspec.DOMAIN):
            function = ir.serde.deserialize_function(function_for(opspec.LINEAR))
            model.functions[function.identifier()] = function

    def _is_weight(self, value: ir.Value) -> bool:
        is_bound = value.const_value is not None or META_KEY in value.meta
        is_matrix = value.shape is not None and len(value.shape) == 2
        return is_matrix and not is_bound and value.name in self.dtypes

    def _type(self, weight: ir.Value) -> ir.DataType:
        return ir.DataType[BY_NAME[self.dtypes[weight.name or ""]].onnx]


def _reads_in_place(node: ir.Node, index: int) -> bool:
    """Whether the node reads its input ``index`` as a matrix ``[out, in]`` or as rows to gather."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if (node.domain, node.op_type) == ("", "Gather"):
        return index == 0 and attributes.get("axis", 0) == 0
    defaults = {"alpha": 1, "beta": 1, "transA": 0}
    return (node.domain, node.op_type, index) == ("", "Gemm", 1) and {
        **defaults,
        **attributes,
    } == defaults | {"transB": 1}


def _widen_rows(graph: ir.Graph, gather: ir.Node, dtype: ir.DataType) -> None:
    """Gather rows of the type on disk; what reads them gets float32."""
    if dtype == ir.DataType.FLOAT:
        return
    emit, shape = Inserter(graph, gather), gather.outputs[0].shape
    rows = emit.op("Gather", gather.inputs, "rows", attributes={"axis": 0}, dtype=dtype, shape=shape)
    replace(graph, gather, [emit.cast(rows, ir.DataType.FLOAT, "widened")])
