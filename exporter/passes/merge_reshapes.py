"""Replace a reshape of a reshape by one, or by nothing.

A traced layer takes and returns ``[batch, sequence, hidden]`` and works on ``[tokens, hidden]``, so between
two layers stands ``Reshape(Reshape(x, [batch, sequence, hidden]), [-1, hidden])``, which is ``x``. Around
attention, heads are split and merged in the same way.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass, PassResult, input_of, nodes_of


class MergeReshapes(Pass):
    """``Reshape(Reshape(x), shape)`` becomes ``Reshape(x, shape)``, or ``x`` where it has that shape already.

    If nothing else reads the value between the two and only its name is a module's path, ``x`` takes that
    name: it is the same tensor, and parity looks tensors up by module.
    """

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every pair."""
        graph = model.graph
        for outer in nodes_of(graph, "Reshape"):
            between = input_of(outer, 0)
            inner = between.producer()
            if inner is None or inner.op_type != "Reshape":
                continue
            if _copies_sizes(outer):
                result.refused.append(f"{outer.name}: its shape copies sizes of its input")
                continue
            source = input_of(inner, 0)
            if _same_matrix(source, outer.outputs[0]) and not outer.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(outer.outputs[0], source)
                graph.remove(outer, safe=True)
            else:
                outer.replace_input_with(0, source)
            if not between.consumers() and not between.is_graph_output():
                name, between.name = between.name, None
                graph.remove(inner, safe=True)
                if (
                    source.producer() is not None
                    and _is_module_path(name)
                    and not _is_module_path(source.name)
                ):
                    source.name = name
            result.matched += 1


def _is_module_path(name: str | None) -> bool:
    """Names of values inside a module have the module's path, a slash, and what they are."""
    return name is not None and "/" not in name


def _copies_sizes(reshape: ir.Node) -> bool:
    """Whether a zero in the shape may stand for a size of the input."""
    allow_zero = reshape.attributes.get("allowzero")
    if allow_zero is not None and allow_zero.as_int():
        return False
    constant = input_of(reshape, 1).const_value
    return constant is not None and 0 in constant.numpy().tolist()


def _same_matrix(first: ir.Value, second: ir.Value) -> bool:
    """Whether both are matrices with the same number of columns (rows follow from the element count)."""
    a, b = first.shape, second.shape
    return (
        a is not None and b is not None and len(a) == len(b) == 2 and isinstance(a[1], int) and a[1] == b[1]
    )
