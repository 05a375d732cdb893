"""Weights as they lie on disk: ``Gemm`` -> ``Q2Linear``, experts and embedding in the type they have.

ONNX Runtime's kernels on the CPU want float32 weights. A checkpoint of 16 bits would be written anew for
them, twice as large, and be read at twice the cost for every token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.exporter.graph.ops.functions import function_for
from q2export.exporter.passes.base import (
    Inserter,
    Pass,
    PassResult,
    attribute_int,
    define,
    input_of,
    nodes_of,
    replace,
)
from q2export.exporter.weights.stack import META_KEY

_FIXED_MOE_INPUTS = len(opspec.MOE.inputs)


class LowerLinear(Pass):
    """What multiplies a weight or gathers its rows takes it in the type it has on disk.

    Args:
        dtypes: of the weights on disk, by Hugging Face name; those that are not here are left alone.
        bfloat16_activations: round what bfloat16 weights multiply to bfloat16.
    """

    def __init__(self, dtypes: Mapping[str, str], *, bfloat16_activations: bool = False) -> None:
        self.dtypes = dtypes
        self.bfloat16_activations = bfloat16_activations

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Replace every Gemm, Gather and mixture whose weights nothing else reads but others of these."""
        graph, narrowed = model.graph, self._narrowed(model.graph, result)
        for gemm in nodes_of(graph, "Gemm"):
            if input_of(gemm, 1).name in narrowed:
                self._lower(graph, gemm)
                result.matched += 1
        for gather in nodes_of(graph, "Gather"):
            if input_of(gather, 0).name in narrowed:
                _widen_rows(graph, gather, self._type(input_of(gather, 0)))
                result.matched += 1
        for name in narrowed:
            weight = graph.initializers[name]
            weight.type = ir.TensorType(self._type(weight))
        if nodes_of(graph, opspec.LINEAR.name, opspec.DOMAIN):
            define(model, function_for(opspec.LINEAR))
        mixtures = [moe for moe in _mixtures(graph) if input_of(moe, _FIXED_MOE_INPUTS).name in narrowed]
        result.matched += len(mixtures)
        for moe in _mixtures(graph) if mixtures else []:  # all: the function that is defined below reads it
            rounds = moe in mixtures and self._rounds_for(input_of(moe, _FIXED_MOE_INPUTS))
            moe.attributes.add(ir.AttrInt64("bfloat16_activations", int(rounds)))
        for moe in mixtures[:1]:
            experts = attribute_int(moe, "num_experts")
            define(model, function_for(opspec.MOE, num_experts=experts, widen=True))

    def _narrowed(self, graph: ir.Graph, result: PassResult) -> set[str]:
        """Names of the weights that can be read in their own type."""
        narrowed = set()
        alike = {moe for moe in _mixtures(graph) if self._has_alike_experts(moe)}
        for value in filter(self._is_weight, graph.initializers.values()):
            others = [use.node for use in value.uses() if not _reads_in_place(use.node, use.idx, alike)]
            if others:
                result.refused.append(f"{value.name}: {others[0].op_type} reads it as float32")
            else:
                narrowed.add(value.name or "")
        return narrowed

    def _lower(self, graph: ir.Graph, gemm: ir.Node) -> None:
        attributes = {"bfloat16_activations": int(self._rounds_for(input_of(gemm, 1)))}
        linear = Inserter(graph, gemm).op(
            opspec.LINEAR.name, gemm.inputs, domain=opspec.DOMAIN, attributes=attributes
        )
        replace(graph, gemm, [linear])

    def _rounds_for(self, weight: ir.Value) -> bool:
        """Whether what the weight multiplies is rounded to bfloat16."""
        return self.bfloat16_activations and self._type(weight) == ir.DataType.BFLOAT16

    def _is_weight(self, value: ir.Value) -> bool:
        is_bound = value.const_value is not None or META_KEY in value.meta
        is_matrix = value.shape is not None and len(value.shape) == 2
        return is_matrix and not is_bound and value.name in self.dtypes

    def _type(self, weight: ir.Value) -> ir.DataType:
        return ir.DataType[BY_NAME[self.dtypes[weight.name or ""]].onnx]

    def _has_alike_experts(self, moe: ir.Node) -> bool:
        """Whether all experts are of one type, as the kernel wants them."""
        experts = moe.inputs[_FIXED_MOE_INPUTS:]
        return len({self.dtypes.get(each.name or "") for each in experts if each is not None}) == 1


def _mixtures(graph: ir.Graph) -> list[ir.Node]:
    return nodes_of(graph, opspec.MOE.name, opspec.DOMAIN)


def _reads_in_place(node: ir.Node, index: int, mixtures: Collection[ir.Node]) -> bool:
    """Whether the node reads its input ``index`` as a matrix ``[out, in]`` or as rows to gather.

    ``mixtures`` are those whose kernel takes their experts as they are.
    """
    if node in mixtures:
        return index >= _FIXED_MOE_INPUTS
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
